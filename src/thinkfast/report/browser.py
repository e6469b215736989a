"""A few problems to look at: what each system's chains said, how they voted, and which of them are right.

Why: figures hide what a vote does. Problems are chosen for what they show (a vote that rescues, one that fails, systems
that differ, a problem nobody solves), not for who looks good on them, and the choice is the same for the same log.

Usage: ``for shown in choose(views, problem_list(results)): shown.tag, shown.ballots``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thinkfast.judge.vote import Vote, majority
from thinkfast.report.samples import Row
from thinkfast.report.views import View

PROBLEMS = 6
BARS = 5
CHAINS = 3


@dataclass(frozen=True, slots=True)
class Bar:
    """Votes for one answer (None: no answer; "others" for wrong ones beyond the first few), and whether it is right."""

    answer: str | None
    count: int
    right: bool | None


@dataclass(frozen=True, slots=True)
class Ballot:
    """One system on one problem: the vote, the bars that sum up its chains, and chains to read."""

    view: View
    vote: Vote
    vote_right: bool
    right: int
    total: int
    bars: tuple[Bar, ...]
    chains: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """A problem of the browser; tag says why it was chosen."""

    id: str
    question: str
    answer: str
    tag: str
    ballots: tuple[Ballot, ...]


def choose(views: Sequence[View], problems: Sequence[Mapping[str, Any]], most: int = PROBLEMS) -> list[Shown]:
    """Up to `most` problems, the first of each kind, then the first of those left."""
    rows: dict[tuple[str, str], list[Row]] = {}
    for view in views:
        for row in view.rows:
            rows.setdefault((view.name, row.problem), []).append(row)
    every = [
        Shown(
            id=str(problem["id"]),
            question=str(problem["question"]),
            answer=str(problem["answer"]),
            tag="",
            ballots=tuple(_ballot(view, rows.get((view.name, str(problem["id"])), [])) for view in views),
        )
        for problem in problems
    ]
    chosen: list[Shown] = []
    for tag, fits in _KINDS:
        found = next((s for s in every if fits(s.ballots) and all(s.id != c.id for c in chosen)), None)
        if found is not None:
            chosen.append(Shown(found.id, found.question, found.answer, tag, found.ballots))
    rest = [s for s in every if all(s.id != c.id for c in chosen)]
    return [*chosen, *rest][:most]


def _rescued(ballots: Sequence[Ballot]) -> bool:
    return any(b.vote_right and b.total >= 4 and b.right < 0.5 * b.total for b in ballots)


def _outvoted(ballots: Sequence[Ballot]) -> bool:
    return any(b.right > 0 and not b.vote_right for b in ballots)


def _differ(ballots: Sequence[Ballot]) -> bool:
    first = ballots[0].vote_right
    return any(b.vote_right != first for b in ballots[1:])


def _unsolved(ballots: Sequence[Ballot]) -> bool:
    return not any(b.right for b in ballots)


def _solved(ballots: Sequence[Ballot]) -> bool:
    return all(b.vote_right for b in ballots)


_KINDS: tuple[tuple[str, Callable[[Sequence[Ballot]], bool]], ...] = (
    ("most chains are wrong, the vote is right", _rescued),
    ("a right chain is outvoted", _outvoted),
    ("the systems differ", _differ),
    ("nobody solves it", _unsolved),
    ("every vote is right", _solved),
)


def _ballot(view: View, rows: Sequence[Row]) -> Ballot:
    ordered = sorted(rows, key=lambda row: row.seconds)  # a vote takes chains as they finished
    vote = majority([row.key for row in ordered], answers=[row.answer for row in ordered])
    right_keys = {row.key for row in ordered if row.correct and row.key is not None}
    counts = Counter(row.key for row in ordered)
    names: dict[str | None, str | None] = {}
    for row in ordered:
        names.setdefault(row.key, row.answer)
    ranked = sorted(counts, key=lambda key: (key is None, -counts[key]))
    # Right answers have bars of their own however few voted for them: among "others" they would colour wrong ones.
    shown = [*ranked[:BARS], *(key for key in ranked[BARS:] if key in right_keys)]
    bars = [Bar(names[key], counts[key], key in right_keys if key is not None else None) for key in shown]
    if left := len(ordered) - sum(bar.count for bar in bars):
        bars.append(Bar("others", left, None))
    return Ballot(
        view=view,
        vote=vote,
        vote_right=vote.key is not None and vote.key in right_keys,
        right=sum(row.correct is True for row in ordered),
        total=len(ordered),
        bars=tuple(bars),
        chains=tuple(_examples(ordered, vote)),
    )


def _examples(rows: Sequence[Row], vote: Vote) -> list[Row]:
    """Chains to read: the vote's first, the first right one, the first wrong one, then others."""
    firsts = [
        next((row for row in rows if row.key is not None and row.key == vote.key), None),
        next((row for row in rows if row.correct is True), None),
        next((row for row in rows if row.correct is False), None),
        *rows,
    ]
    found: list[Row] = []
    for row in firsts:
        if row is not None and row not in found:
            found.append(row)
    return found[:CHAINS]
