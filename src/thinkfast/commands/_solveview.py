"""What `thinkfast solve` shows: the votes growing in a terminal, plain lines elsewhere, the answer on the last line.

The terminal is drawn by rich's own thread from what the last event left behind, so the engine never waits for it.

Usage: ``with solve_view(Console(), problem, seconds, n) as view: view.finish(solve(problem, on_event=view.event, …))``.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from thinkfast.judge.events import ChainFinished, Decided, Event, Started, VoteChanged
from thinkfast.judge.solution import Solution
from thinkfast.judge.tally import Standing

SHOWN = 6  # answers that get a bar; the rest share one
BAR = 32


class PlainView(AbstractContextManager["PlainView"]):
    """A line when sampling starts, when the lead changes and when the vote is decided; then the outcome."""

    def __init__(self, console: Console, problem: str, seconds: float, n: int) -> None:
        self._console, self._seconds = console, seconds

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def event(self, event: Event) -> None:
        """One line for what is news."""
        match event:
            case Started():
                budget = f"{self._seconds:g} s" if math.isfinite(self._seconds) else "no limit"
                self._line(event.seconds, f"{event.model} is loaded: up to {event.chains} chains, {budget} in all")
            case VoteChanged(new_leader=True):
                top = event.standings[0]
                sure = "" if event.confidence is None else f", {event.confidence:.0%} sure"
                self._line(event.seconds, f"{top.answer} leads with {top.count} of {_chains(event.total)}{sure}")
            case Decided(leader=Standing() as leader):
                self._line(event.seconds, f"{leader.answer} is decided with {leader.count} votes")

    def _line(self, seconds: float, text: str) -> None:
        self._console.print(Text(f"{seconds:7.2f} s  {text}"))

    def finish(self, solution: Solution) -> None:
        """Votes, one chain, the answer."""
        total = _total(solution.votes)
        self._console.print(Text(_outcome(solution)))
        for standing in solution.votes:
            self._console.print(
                Text(f"  {standing.answer}: {_votes(standing.count)} of {total} ({standing.share:.0%})")
            )
        _print_end(self._console, solution)


class LiveView(AbstractContextManager["LiveView"]):
    """A bar an answer, chains finished, seconds left, tokens per second."""

    def __init__(self, console: Console, problem: str, seconds: float, n: int) -> None:
        self._console, self._problem, self._seconds, self._n = console, problem, seconds, n
        self._began = time.monotonic()
        self._started: Started | None = None
        self._sampling = 0.0
        self._tokens_before = 0
        self._standings: tuple[Standing, ...] = ()
        self._confidence: float | None = None
        self._total = self._finished = 0
        self._decided = False
        self._solution: Solution | None = None
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def event(self, event: Event) -> None:
        """Note what is new; the next refresh shows it."""
        match event:
            case Started():
                self._tokens_before, self._sampling = event.stats.generated_tokens, time.monotonic()
                self._n, self._started = event.chains, event
            case ChainFinished():
                self._finished, self._total = event.finished, self._total + 1
            case VoteChanged():
                self._standings, self._total, self._confidence = event.standings, event.total, event.confidence
            case Decided():
                self._decided = True

    def finish(self, solution: Solution) -> None:
        """The last picture stays; below it one chain and the answer."""
        self._solution = solution
        self._live.stop()
        _print_end(self._console, solution)

    def _render(self) -> RenderableType:
        solution = self._solution
        standings, total = (solution.votes, _total(solution.votes)) if solution else (self._standings, self._total)
        question = Text(self._problem.strip(), style="bold")
        bars = Padding(_bars(standings, total, "no answer yet" if solution is None else "no answer"), (1, 0, 1, 1))
        return Group(question, bars, self._status() if solution is None else Text(_outcome(solution), style="dim"))

    def _status(self) -> RenderableType:
        passed = time.monotonic() - self._began
        left = max(self._seconds - passed, 0.0)
        clock = f"{left:4.1f} s left" if math.isfinite(left) else f"{passed:4.1f} s"
        if self._started is None:
            return Text.assemble(("loading the model", "dim"), f"   {clock}")
        state = ("decided", "bold green") if self._decided else (self._started.model, "bold")
        tokens = self._started.stats.generated_tokens - self._tokens_before
        speed = tokens / max(time.monotonic() - self._sampling, 1e-3)
        sure = "" if self._confidence is None else f"   {self._confidence:.0%} sure"
        line = Text.assemble(
            state, f"   {self._finished} of {_chains(self._n)}   {clock}   {speed:,.0f} tokens/s{sure}", no_wrap=True
        )
        grid = Table.grid(padding=(0, 3))
        time_bar = ProgressBar(self._seconds, min(passed, self._seconds), BAR // 2, complete_style="yellow")
        grid.add_row(line, *([time_bar] if math.isfinite(self._seconds) else []))
        return grid


def solve_view(console: Console, problem: str, seconds: float, n: int) -> LiveView | PlainView:
    """The view that suits where the output goes."""
    return (LiveView if console.is_terminal else PlainView)(console, problem, seconds, n)


def _bars(standings: tuple[Standing, ...], total: int, none: str) -> RenderableType:
    """Shares of the votes; what has no bar of its own is summed up. none: what to say where there are no votes."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", max_width=28, no_wrap=True, overflow="ellipsis")
    grid.add_column()
    grid.add_column(justify="right")
    grid.add_column(justify="right")
    if not standings:
        grid.add_row(Text(none, style="dim"), _bar(0, "dim"), "", "")
        return grid
    shown = standings if len(standings) <= SHOWN else standings[: SHOWN - 1]
    for place, standing in enumerate(shown):
        colour = "green" if place == 0 else "cyan"
        answer = Text(standing.answer, style="bold green" if place == 0 else "")
        grid.add_row(answer, _bar(standing.count / total, colour), str(standing.count), f"{standing.share:.0%}")
    voted = sum(standing.count for standing in standings)
    others = voted - sum(standing.count for standing in shown)
    for name, count in ((f"{len(standings) - len(shown)} other answers", others), ("no answer", total - voted)):
        if count:
            grid.add_row(
                Text(name, style="dim"), _bar(count / total, "bright_black"), str(count), f"{count / total:.0%}"
            )
    return grid


def _bar(share: float, colour: str) -> ProgressBar:
    return ProgressBar(1.0, share, BAR, complete_style=colour, finished_style=colour)


def _print_end(console: Console, solution: Solution) -> None:
    """One chain that says the answer, then the answer alone on the last line."""
    if (shown := solution.sample) is not None:
        chain = shown.chain
        cut = "" if shown.finished else ", cut by the deadline"
        console.print(Text(f"\nchain {chain.index} ({len(chain.tokens)} tokens, {shown.seconds:.2f} s{cut}):"))
        console.print(Padding(Text(chain.text.strip(), style="dim"), (0, 0, 1, 2)))
    else:
        console.print()
    if solution.answer is None:
        console.print(Text("no answer", style="bold yellow"))
    else:
        console.print(Text(solution.answer, style="bold green"), soft_wrap=True)


def _outcome(solution: Solution) -> str:
    sure = "" if solution.confidence is None else f", {solution.confidence:.0%} sure"
    scored = f", {solution.scoring_seconds:.2f} s of them scoring" if solution.scoring_seconds else ""
    return f"{solution.model}: {solution.note}{sure}, {solution.seconds:.2f} s{scored}, {solution.tokens:,} tokens"


def _total(votes: tuple[Standing, ...]) -> int:
    return round(votes[0].count / votes[0].share) if votes else 0


def _votes(count: int) -> str:
    return f"{count} vote" if count == 1 else f"{count} votes"


def _chains(count: int) -> str:
    return f"{count} chain" if count == 1 else f"{count} chains"
