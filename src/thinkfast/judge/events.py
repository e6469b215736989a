"""What `solve` tells while it works: started, a chain finished, the vote changed, decided, answered.

Frozen values, so that a terminal, a server and a log can share them. They come from the thread that called `solve`,
between two decode steps, and the time a listener takes is part of the budget.

Usage: ``solve(problem, seconds=5, on_event=lambda e: print(e.answer) if isinstance(e, VoteChanged) else None)``.
"""

from __future__ import annotations

from dataclasses import dataclass

from thinkfast.engine.session import Stats
from thinkfast.judge.solution import Solution
from thinkfast.judge.tally import Ballot, Standing


@dataclass(frozen=True, slots=True)
class Started:
    """The model is loaded and sampling begins. chains: most of them, over all problems. seconds: since `solve` was
    called. stats: the engine's own counters, which go on counting.
    """

    model: str
    problems: int
    chains: int
    seconds: float
    stats: Stats


@dataclass(frozen=True, slots=True)
class ChainFinished:
    """A chain of problem number ``problem`` has been read. finished: how many of its ``n`` chains have."""

    problem: int
    ballot: Ballot
    finished: int
    n: int


@dataclass(frozen=True, slots=True)
class VoteChanged:
    """A ballot with an answer was counted. standings: all answers, the answer so far first. new_leader: whether that
    one just took the lead. confidence: calibrated probability that it is right, None without a calibration.
    """

    problem: int
    standings: tuple[Standing, ...]
    total: int
    new_leader: bool
    seconds: float
    confidence: float | None = None

    @property
    def answer(self) -> str:
        """The answer so far."""
        return self.standings[0].answer


@dataclass(frozen=True, slots=True)
class Decided:
    """The stop rule fired: ``remaining`` chains of this problem are cancelled, or never begun. leader: None where a
    rule gives up on a problem that nobody has answered.
    """

    problem: int
    leader: Standing | None
    remaining: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Answered:
    """The last event of a problem: what `solve` returns for it."""

    problem: int
    solution: Solution


Event = Started | ChainFinished | VoteChanged | Decided | Answered
