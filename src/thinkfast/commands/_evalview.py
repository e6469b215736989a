"""What `thinkfast eval` and `thinkfast report` show in the terminal: progress while it runs, tables at the end.

Usage: ``with EvalView(config) as view: evaluate(config, out, on_start=view.start, on_chain=view.chain)``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

from thinkfast.engine.plan import MemoryPlan
from thinkfast.report import tables
from thinkfast.report.evaluate import EvalConfig, Start
from thinkfast.report.render import Report
from thinkfast.report.samples import SAMPLES, Row, read_rows
from thinkfast.report.summary import Summary, summarise
from thinkfast.report.tables import Table

STYLES = {"best": "bold green", "good": "green", "bad": "red", "muted": "dim", "": ""}

DEFAULT_BATCH = next(each.default for each in fields(EvalConfig) if each.name == "max_batch")
EVERY = 20.0  # seconds between lines where no terminal shows the bar move


class EvalView:
    """A bar a system: chains, tokens per second of all chains at work, seconds, and what is left.

    Speed and seconds are read when the bar is drawn, not when a chain ends: the first may take minutes.
    """

    def __init__(self, config: EvalConfig, console: Console | None = None) -> None:
        self._config = config
        self._console = console or Console(highlight=False)
        self._bar = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(bar_width=18),
            _LiveColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
        )
        self._reading: TaskID | None = self._bar.add_task(f"reading {config.problems}", total=None)
        self._task: TaskID | None = None
        self._start: Start | None = None
        self._chains = 0
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._have_read()
        self._stand(ended=error is None)
        self._bar.stop()

    def _have_read(self) -> None:
        if self._reading is not None:
            self._bar.remove_task(self._reading)
            self._reading = None

    def load(self, system: str) -> None:
        """A system's model is being loaded; the one before has ended."""
        self._have_read()
        self._stand(ended=True)
        self._start, self._chains = None, 0
        self._task = self._bar.add_task(f"{system}: loading", total=None)

    def plan(self, plan: MemoryPlan) -> None:
        """What of a GPU's memory is about to be taken; a CPU's is only taken as it fills. What was asked for and will
        not be had, as the model ends before it or the problems do not fill it.
        """
        if self._config.device != "cpu":
            self._bar.console.print(Text(str(plan), style="dim"))
        config, said = self._config, []
        if plan.max_len <= config.max_tokens:
            said.append(f"chains end at {plan.max_len} tokens, prompt included: the model has no more positions")
        if plan.max_batch < config.max_batch != DEFAULT_BATCH:
            said.append(f"{plan.max_batch} chains are decoded together: samples are made in units, which have no more")
        for line in said:
            self._bar.console.print(Text(f"note: {line}", style="dim"))

    def start(self, start: Start) -> None:
        """Its clock starts, or goes on."""
        if self._task is None:
            self.load(start.system)
        self._start, self._chains = start, start.done
        if start.done:
            whole = f" of {start.chains}" if start.chains else ""
            self._bar.console.print(
                Text(
                    f"{start.system}: going on after {start.done}{whole} chains and {start.seconds:.0f} s", style="dim"
                )
            )
        self._update(description=start.system, total=1.0, start=start)

    def chain(self, row: Row) -> None:
        """A chain has been checked."""
        self._chains += 1
        self._update()
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said > EVERY:
            self._said = now
            # Not as a table counts them: in a log this must not read like the result that comes further down.
            whole = self._start.chains if self._start is not None else None
            chains = f"{self._chains:,} of {whole:,} chains" if whole else f"{self._chains:,} chains so far,"
            print(f"{row.system}: {chains} after {row.seconds:.0f} s", file=sys.stderr, flush=True)

    def _stand(self, ended: bool) -> None:
        """From here on the bar shows what it shows now, and asks its clock no more."""
        if self._task is not None and self._start is not None:
            done: dict[str, Any] = {"total": 1.0, "completed": 1.0} if ended else {}
            self._bar.update(self._task, said=_speed(self._start, self._counted()), start=None, **done)
            self._start = None

    def _counted(self) -> str:
        whole = self._start.chains if self._start is not None else None
        return f"{self._chains}/{whole} chains" if whole else f"{self._chains} chains"

    def _update(self, **fields: Any) -> None:
        if self._task is None or self._start is None:
            return
        share = self._share(self._start)
        self._bar.update(self._task, completed=share, chains=self._counted(), **fields)
        if share >= 1:
            self._stand(ended=True)

    def _share(self, start: Start) -> float:
        by_chains = self._chains / start.chains if start.chains else 0.0
        by_seconds = start.live()[0] / self._config.seconds if self._config.seconds else 0.0
        return min(1.0, max(by_chains, by_seconds))


class _LiveColumn(ProgressColumn):
    """Chains, tokens per second and seconds of a task that has started; of one that has ended, what they were then."""

    def render(self, task: Task) -> Text:
        start: Start | None = task.fields.get("start")
        return Text(task.fields.get("said", "") if start is None else _speed(start, task.fields["chains"]))


def _speed(start: Start, chains: str) -> str:
    seconds, tokens = start.live()
    passed = seconds - start.seconds
    speed = tokens / passed if passed > 0 else 0.0
    return f"{chains}  {speed:,.0f} tokens/s  {seconds:.1f} s"


def print_result(results: Mapping[str, Any], out: Path, report: Report | None, console: Console | None = None) -> None:
    """The final tables, the sentences, and where the report lies."""
    console = console or Console(highlight=False, soft_wrap=True)
    log = out / str(results.get("samples") or SAMPLES)
    summary = report.summary if report is not None else summarise(results, read_rows(log))
    console.print(terminal_table(tables.final_table(summary), leave_out=("parameters", "tokens")))
    if summary.budgets and len(summary.views) > 1:
        console.print(terminal_table(tables.winner_table(summary)))
    print_headline(summary, console)
    console.print(Text(f"\nsamples: {log}"))
    if report is not None:
        console.print(Text(f"report:  {report.html}"))


def print_headline(summary: Summary, console: Console) -> None:
    """Who won at which budget, and where a student loses."""
    console.print(Text(f"\n{summary.headline.title}", style="bold"))
    if summary.headline.warning:
        console.print(Text(summary.headline.warning, style="bold yellow"))
    colours = {"win": "green", "loss": "red", "even": "dim"}
    for point in summary.headline.points:
        console.print(Text.assemble(("● ", colours[point.tone]), point.text, (f" ({point.figures})", "dim")))


SHORT = 14  # characters of a cell that is a figure


def terminal_table(table: Table, leave_out: Sequence[str] = ()) -> RichTable:
    """One of the report's tables for a terminal; a system's colour is that of its curves."""
    kept = [at for at, column in enumerate(table.columns) if column not in leave_out]
    shown = RichTable(title=table.title, title_justify="left", title_style="bold", caption_justify="left", box=None)
    for at in kept:
        # In a narrow terminal words may move to the next line; of a number nothing may be lost.
        short = all(max(len(line.cells[at].text), len(line.cells[at].small)) <= SHORT for line in table.lines)
        header = table.columns[at].replace(" ", "\n", 1) if short else table.columns[at]
        shown.add_column(header, justify="left" if at == 0 else "right", header_style="dim", no_wrap=short)
    for line in table.lines:
        cells = []
        for cell in (line.cells[at] for at in kept):
            dot = [("● ", cell.colour)] if cell.colour else []
            small = [(f"\n{cell.small}", "dim")] if cell.small else []
            cells.append(Text.assemble(*dot, (cell.text, STYLES[cell.tone]), *small))
        shown.add_row(*cells)
    return shown
