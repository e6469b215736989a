"""What `thinkfast eval` and `thinkfast report` show in the terminal: progress while it runs, tables at the end.

Usage: ``with EvalView(config) as view: evaluate(config, out, on_start=view.start, on_chain=view.chain)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from thinkfast.report import tables
from thinkfast.report.evaluate import EvalConfig, Start
from thinkfast.report.render import Report
from thinkfast.report.samples import SAMPLES, Row, read_rows
from thinkfast.report.summary import Summary, summarise
from thinkfast.report.tables import Table

STYLES = {"best": "bold green", "good": "green", "bad": "red", "muted": "dim", "": ""}


class EvalView:
    """A progress bar a system: chains, tokens per second, seconds, and what is left."""

    def __init__(self, config: EvalConfig, console: Console | None = None) -> None:
        self._config = config
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[chains]} chains  {task.fields[speed]} tokens/s  {task.fields[seconds]}"),
            TimeRemainingColumn(compact=True),
            console=console or Console(highlight=False),
        )
        self._task = TaskID(0)
        self._whole: int | None = None
        self._chains = self._tokens = 0
        self._begun = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def start(self, start: Start) -> None:
        """A system begins or goes on."""
        self._whole, self._chains, self._tokens, self._begun = start.chains, start.done, 0, start.seconds
        self._task = self._bar.add_task(start.system, total=1.0, chains="", speed="", seconds="")
        self._show(start.seconds)

    def chain(self, row: Row) -> None:
        """A chain has been checked."""
        self._chains += 1
        self._tokens += row.tokens
        self._show(row.seconds)

    def _show(self, seconds: float) -> None:
        passed = seconds - self._begun
        speed = f"{self._tokens / passed:,.0f}" if passed > 0 else "0"
        chains = f"{self._chains}/{self._whole}" if self._whole else f"{self._chains}"
        share = self._share(seconds)
        self._bar.update(self._task, completed=share, chains=chains, speed=speed, seconds=f"{seconds:.1f} s")

    def _share(self, seconds: float) -> float:
        by_chains = self._chains / self._whole if self._whole else 0.0
        return min(1.0, max(by_chains, seconds / self._config.seconds if self._config.seconds else 0.0))


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
