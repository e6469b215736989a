"""Ballots and their tally: the vote that grows as chains finish, and the rule that says when it is decided.

Why not `vote.majority` over and over: the answer so far is asked for after every chain, and whether the leader can
still be caught needs every key's count. The order of standing is that of `vote.majority`; a test holds them together.

Usage: ``tally.add(read(chain, seconds)); tally.standings()[0].answer; unbeatable(tally, remaining=12)``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from thinkfast.engine.request import Chain
from thinkfast.judge.answer import judge


@dataclass(frozen=True, slots=True)
class Ballot:
    """A chain that came back, and what it votes for.

    answer: as the chain wrote it; key: its canonical form; both None where it voted for nothing. seconds: since the
    clock of the whole solving started, model loading included (`chain.seconds` counts from the engine's run).
    """

    chain: Chain
    answer: str | None
    key: str | None
    seconds: float

    @property
    def finished(self) -> bool:
        """Whether the chain came to its own end, and was not cut by the deadline or by a decision."""
        return self.chain.finish in ("stop", "length", "error")


@dataclass(frozen=True, slots=True)
class Standing:
    """One answer's place in the vote. answer: its most common surface form. share: of all ballots counted, those
    without an answer too. first: when its first ballot came, 0 for the earliest of all; it breaks ties.
    """

    answer: str
    key: str
    count: int
    share: float
    first: int


class Tally:
    """Counts ballots as they come. ``total`` has those without an answer too."""

    def __init__(self) -> None:
        self.total = 0
        self._forms: dict[str, Counter[str]] = {}  # by key, in the order in which keys were first seen

    def add(self, ballot: Ballot) -> None:
        """Count one ballot; without a key it counts in the total alone."""
        self.total += 1
        if ballot.key is not None:
            self._forms.setdefault(ballot.key, Counter())[ballot.answer or ballot.key] += 1

    def standings(self) -> tuple[Standing, ...]:
        """Every answer with its votes, the leader first; of equal counts the one whose first ballot came earlier."""
        found = [
            Standing(max(forms, key=lambda form: forms[form]), key, forms.total(), forms.total() / self.total, first)
            for first, (key, forms) in enumerate(self._forms.items())
        ]
        return tuple(sorted(found, key=lambda s: -s.count))

    @property
    def leader(self) -> Standing | None:
        """The answer so far."""
        return next(iter(self.standings()), None)


StopRule = Callable[[Tally, int], bool]
"""(votes so far, chains still to come) to whether to stop now. Called after every chain that finishes."""


def unbeatable(tally: Tally, remaining: int) -> bool:
    """Whether the leader stays the leader however the ``remaining`` chains vote; the stop rule that risks nothing."""
    leader, *others = tally.standings() or (None,)
    if leader is None:
        return False
    # A newcomer's first ballot would be later than the leader's, so it has to win outright.
    lead = leader.count - remaining
    return lead >= 0 and all(lead > s.count or (lead == s.count and leader.first < s.first) for s in others)


_MARK = re.compile(r"\\boxed|\\fbox|^[ \t]*####", re.MULTILINE)


def read(chain: Chain, seconds: float) -> Ballot:
    """The ballot of a chain.

    A chain that ended by itself may state its answer as its last number; one that ran out of tokens has to have said
    that it is the answer. One that the deadline cut must have marked it, in a box or after ####, and gone past its end:
    "The answer is the number of coins …" is how some begin, and "\\boxed{25" may have been about to be 252. Cancelled
    and failed chains vote for nothing.
    """
    if chain.finish in ("cancelled", "error"):
        return Ballot(chain, None, None, seconds)
    text = _marked(chain.text) if chain.finish == "deadline" else chain.text
    verdict = judge(text, None, last_number=chain.finish == "stop")
    return Ballot(chain, verdict.answer, verdict.key, seconds)


def _marked(text: str) -> str:
    """From the first mark to the last place where an answer can have ended."""
    mark = _MARK.search(text)
    return text[mark.start() : max(text.rfind("}"), text.rfind("\n")) + 1] if mark else ""
