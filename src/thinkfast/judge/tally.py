"""Ballots and their tally: the vote that grows as chains finish.

Why not `vote.cast_votes` over and over: the answer so far is asked for after every chain, and whether the leader can
still be caught needs every key's weight. The order of standing is that of `vote.cast_votes`; a test holds them
together.

Usage: ``tally.add(read(chain, seconds)); tally.standings()[0].answer; unbeatable(tally, remaining=12)``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from thinkfast.engine.request import Chain
from thinkfast.judge.answer import judge
from thinkfast.judge.vote import weigh
from thinkfast.judge.voters import MAJORITY, Majority, Reads, Voter, Weighted


@dataclass(frozen=True, slots=True)
class Ballot:
    """A chain that came back, and what it votes for.

    answer: as the chain wrote it; key: its canonical form; both None where it voted for nothing. seconds: since the
    clock of the whole solving started, model loading included (`chain.seconds` counts from the engine's run). score:
    what a reward model made of it, None where none was asked or it has not come to it.
    """

    chain: Chain
    answer: str | None
    key: str | None
    seconds: float
    score: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the chain came to its own end, and was not cut by the deadline or by a decision."""
        return self.chain.finish in ("stop", "length", "error")

    def value(self, reads: Reads) -> float | None:
        """What a voter reads of it; None where that is not known."""
        if reads == "logprob":
            return self.chain.logprob / max(len(self.chain.tokens), 1) if math.isfinite(self.chain.logprob) else None
        return self.score if reads == "score" else self.chain.certainty if reads == "certainty" else None


@dataclass(frozen=True, slots=True)
class Standing:
    """One answer's place in the vote. answer: its most common surface form. weight: what its ballots weigh together,
    count: how many they are. share: its part of the weight of all ballots counted, those without an answer too. first:
    when its first ballot came, 0 for the earliest of all; it breaks ties.
    """

    answer: str
    key: str
    count: int
    share: float
    first: int
    weight: float


class Tally:
    """Counts ballots as they come. ``total`` has those without an answer too.

    Arguments:
        voter: what each ballot weighs.
        same: the key under which a key is counted, for keys that a checker has found to mean the same.
    """

    def __init__(self, voter: Voter = MAJORITY, same: Callable[[str], str] = str) -> None:
        self.voter = voter
        self._same = same
        self._ballots: dict[int, Ballot] = {}  # by the number of the sample
        # Per key its surface forms, in the order in which keys were first seen; None where to be counted anew.
        self._forms: dict[str, Counter[str]] | None = {}
        self._standings: tuple[Standing, ...] | None = ()

    @property
    def total(self) -> int:
        """Ballots counted."""
        return len(self._ballots)

    @property
    def ballots(self) -> Iterable[Ballot]:
        """In the order in which they came."""
        return self._ballots.values()

    def add(self, ballot: Ballot) -> None:
        """Count one ballot, or put it in the place of an earlier one of the same chain (now it has a score)."""
        if ballot.chain.index in self._ballots:
            self._forms = None
        elif self._forms is not None:
            self._note(self._forms, ballot)
        self._ballots[ballot.chain.index] = ballot
        self._standings = None

    def recount(self) -> None:
        """Count again: keys have turned out to mean the same."""
        self._forms = self._standings = None

    def standings(self) -> tuple[Standing, ...]:
        """Every answer with its votes, the leader first; of equal weights the one whose first ballot came earlier."""
        if self._standings is None:
            self._standings = self._count()
        return self._standings

    def _count(self) -> tuple[Standing, ...]:
        if self._forms is None:
            self._forms = {}
            for ballot in self._ballots.values():
                self._note(self._forms, ballot)
        forms = self._forms
        # Equal weights need no look at every ballot: at hundreds of chains a second that is most of the judging.
        if self.voter.reads:
            sums, whole = self._weights()
        else:
            sums, whole = {key: float(form.total()) for key, form in forms.items()}, float(self.total)
        found = [
            Standing(max(form, key=form.__getitem__), key, form.total(), min(sums[key] / whole, 1.0), first, sums[key])
            for first, (key, form) in enumerate(forms.items())
        ]
        return tuple(sorted(found, key=lambda s: -s.weight))

    def _note(self, forms: dict[str, Counter[str]], ballot: Ballot) -> None:
        if ballot.key is not None:
            key = self._same(ballot.key)
            forms.setdefault(key, Counter())[ballot.answer or key] += 1

    def _weights(self) -> tuple[dict[str, float], float]:
        """What each key's ballots weigh together, and all ballots."""
        ballots = list(self._ballots.values())
        keys = [None if ballot.key is None else self._same(ballot.key) for ballot in ballots]
        weights = weigh(keys, [ballot.value(self.voter.reads) for ballot in ballots], self.voter).tolist()
        sums: dict[str, float] = {}
        for key, weight in zip(keys, weights, strict=True):
            if key is not None:
                sums[key] = sums.get(key, 0.0) + weight
        return sums, math.fsum(weights) or 1.0

    @property
    def leader(self) -> Standing | None:
        """The answer so far."""
        return self.standings()[0] if self.standings() else None

    @property
    def scored(self) -> bool:
        """Whether every ballot has what the voter reads."""
        return not self.voter.reads or all(b.value(self.voter.reads) is not None for b in self._ballots.values())


StopRule = Callable[[Tally, int], bool]
"""(votes so far, chains still to come) to whether to stop now. Called after every chain that finishes."""


def unbeatable(tally: Tally, remaining: int) -> bool:
    """Whether the leader stays the leader however the ``remaining`` chains vote; the stop rule that risks nothing.

    It speaks only for voters of whom a chain can move at most 1, majority and weighted votes of probabilities; one
    that ranks its chains may always change its mind.
    """
    leader, *others = tally.standings() or (None,)
    if leader is None or not isinstance(tally.voter, Majority | Weighted) or not tally.scored:
        return False
    # A newcomer's first ballot would be later than the leader's, so it has to win outright.
    lead = leader.weight - remaining
    return lead >= 0 and all(lead > s.weight or (lead == s.weight and leader.first < s.first) for s in others)


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
