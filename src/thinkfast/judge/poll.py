"""Poll: one problem's vote in the making, from its first request to its solution.

It knows neither clock nor engine, so how chains become an answer can be followed, and tested, without either.

Usage: ``request = poll.ask(8); events = poll.count(chain, seconds); poll.solution(...)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from thinkfast.engine.request import Chain, Request, SamplingParams
from thinkfast.judge.confidence import Calibration
from thinkfast.judge.events import ChainFinished, Decided, Event, VoteChanged
from thinkfast.judge.solution import BROKEN, Solution, Status, explain
from thinkfast.judge.tally import Ballot, StopRule, Tally, read

UNKNOWN_TOKENS = 100.0  # of a chain, before one has ended; only ratios between problems matter


@dataclass(slots=True)
class Poll:
    """Problem number ``number``, for ``params.n`` chains.

    begun: chains handed to the engine; asked: ids of the requests they were in. finished: chains that came to their
    own end. decided: the stop rule has fired with chains to spare. read: makes a ballot of a chain.
    """

    number: int
    prompt: tuple[int, ...]
    params: SamplingParams
    stop_rule: StopRule
    tally: Tally = field(default_factory=Tally)
    calibration: Calibration | None = None
    read: Callable[[Chain, float], Ballot] = read
    ballots: list[Ballot] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    begun: int = 0
    finished: int = 0
    decided: bool = False
    _tokens: int = 0

    @property
    def left(self) -> int:
        """Chains that may still be begun."""
        return 0 if self.decided else self.params.n - self.begun

    @property
    def mean_tokens(self) -> float:
        """Of the chains that came to their own end."""
        return self._tokens / self.finished if self.finished else UNKNOWN_TOKENS

    @property
    def confidence(self) -> float | None:
        """Calibrated probability that the answer so far is right; None without an answer or a calibration."""
        if self.calibration is None:
            return None
        return self.calibration.confidence(self.tally.leader, self.tally.total, self.tally.voter.name)

    def ask(self, count: int) -> Request:
        """A request for the next ``count`` chains, or for as many as are left.

        Its id is its own, so that several can be in flight; its name is the problem's number, so that sample 20 is the
        same chain in whichever request it comes, and its prompt is the others'.
        """
        first, self.begun = self.begun, min(self.begun + count, self.params.n)
        self.asked.append(f"{self.number}/{first}")
        params = replace(self.params, n=self.begun - first)
        return Request(self.asked[-1], self.prompt, params, first, str(self.number), keep=params.n < self.params.n)

    def count(self, chain: Chain, seconds: float, late: bool = False) -> list[Event]:
        """Read a chain and count its ballot; a cut chain counts where it had marked an answer already. late: time is
        up, and how the vote stands after every one of many chains is no longer told, only at the end.
        """
        ballot = self.read(chain, seconds)
        self.ballots.append(ballot)
        if ballot.finished:
            self._tokens += len(chain.tokens)
        elif ballot.key is None:
            return []
        before = None if late else self.tally.leader
        self.tally.add(ballot)
        self.finished += ballot.finished
        events: list[Event] = [ChainFinished(self.number, ballot, self.finished, self.params.n)]
        if late:
            return events
        if ballot.key is not None:
            events.append(self._changed(before, seconds))
        return [*events, *self._decide(seconds)] if ballot.finished else events

    def skip(self, chain: Chain, seconds: float) -> None:
        """Keep a chain that there is no time left to read. It votes for nothing, as if cut before it had an answer."""
        self.ballots.append(Ballot(chain, None, None, seconds))

    def score(self, scored: Ballot, seconds: float) -> list[Event]:
        """Put a ballot with its score in the place of the same ballot without one."""
        place = next(i for i, b in enumerate(self.ballots) if b.chain is scored.chain)
        self.ballots[place] = scored
        if not scored.finished and scored.key is None:
            return []
        before = self.tally.leader
        self.tally.add(scored)
        return [self._changed(before, seconds), *self._decide(seconds)] if self.tally.leader is not None else []

    def recount(self, seconds: float) -> list[Event]:
        """Keys have turned out to mean the same."""
        before = self.tally.leader
        self.tally.recount()
        return [self._changed(before, seconds), *self._decide(seconds)] if before is not None else []

    def _changed(self, before: object, seconds: float) -> VoteChanged:
        standings = self.tally.standings()
        new_leader = getattr(before, "key", None) != standings[0].key
        return VoteChanged(self.number, standings, self.tally.total, new_leader, seconds, self.confidence)

    def _decide(self, seconds: float) -> list[Event]:
        remaining = self.params.n - self.finished
        if not remaining or self.decided or not self.stop_rule(self.tally, remaining):
            return []
        self.decided = True
        return [Decided(self.number, self.tally.leader, remaining, seconds)]

    def solution(
        self, model: str, seconds: float, budget: float, lost: str | None, scoring_seconds: float = 0.0
    ) -> Solution:
        """What the ballots so far come to. lost: what took all the time, where no chain could start."""
        n, finished, votes = self.params.n, self.finished, self.tally.standings()
        broken = bool(self.ballots) and all(ballot.chain.finish == "error" for ballot in self.ballots)
        status: Status = "complete" if finished == n else "decided" if self.decided else "deadline"
        return Solution(
            answer=votes[0].answer if votes else None,
            share=votes[0].share if votes else 0.0,
            confidence=self.confidence,
            votes=votes,
            chains=tuple(self.ballots),
            seconds=seconds,
            budget=budget,
            status=status,
            n=n,
            n_finished=finished,
            model=model,
            voter=self.tally.voter.name,
            scoring_seconds=scoring_seconds,
            note=BROKEN if broken else explain(bool(votes), status, n, finished, len(self.ballots) - finished, lost),
        )
