"""Poll: one problem's vote in the making, from its first request to its solution.

It knows neither clock nor engine, so how chains become an answer can be followed, and tested, without either.

Usage: ``request = poll.ask(8); events = poll.count(chain, seconds); poll.solution(...)``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from thinkfast.engine.request import Chain, Request, SamplingParams
from thinkfast.judge.events import ChainFinished, Decided, Event, VoteChanged
from thinkfast.judge.solution import Solution, Status, explain
from thinkfast.judge.tally import Ballot, StopRule, Tally, read


@dataclass(slots=True)
class Poll:
    """Problem number ``number``, for ``params.n`` chains.

    begun: chains handed to the engine; asked: ids of the requests they were in. finished: chains that came to their
    own end. decided: the stop rule has fired with chains to spare.
    """

    number: int
    prompt: tuple[int, ...]
    params: SamplingParams
    stop_rule: StopRule
    tally: Tally = field(default_factory=Tally)
    ballots: list[Ballot] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    begun: int = 0
    finished: int = 0
    decided: bool = False

    @property
    def left(self) -> int:
        """Chains that may still be begun."""
        return 0 if self.decided else self.params.n - self.begun

    def ask(self, count: int, turn: bool = False) -> Request:
        """A request for the next ``count`` chains, or for as many as are left.

        Its id is the problem's number, so that sample 20 is the same chain in whichever request it comes. Requests
        that run at the same time need ids of their own: ``turn`` adds the first sample's number.
        """
        first, self.begun = self.begun, min(self.begun + count, self.params.n)
        self.asked.append(f"{self.number}/{first}" if turn else str(self.number))
        return Request(self.asked[-1], self.prompt, replace(self.params, n=self.begun - first), first)

    def count(self, chain: Chain, seconds: float) -> list[Event]:
        """Read a chain and count its ballot; a cut chain counts where it had marked an answer already."""
        ballot = read(chain, seconds)
        self.ballots.append(ballot)
        if not ballot.finished and ballot.key is None:
            return []
        before = self.tally.leader
        self.tally.add(ballot)
        self.finished += ballot.finished
        events: list[Event] = [ChainFinished(self.number, ballot, self.finished, self.params.n)]
        standings = self.tally.standings()
        if ballot.key is not None:
            new_leader = before is None or before.key != standings[0].key
            events.append(VoteChanged(self.number, standings, self.tally.total, new_leader, seconds))
        remaining = self.params.n - self.finished
        if ballot.finished and remaining and not self.decided and self.stop_rule(self.tally, remaining):
            self.decided = True
            events.append(Decided(self.number, standings[0] if standings else None, remaining, seconds))
        return events

    def solution(self, model: str, seconds: float, budget: float, load_seconds: float | None) -> Solution:
        """What the ballots so far come to. load_seconds: set where loading the model took all the time."""
        n, finished, votes = self.params.n, self.finished, self.tally.standings()
        status: Status = "complete" if finished == n else "decided" if self.decided else "deadline"
        return Solution(
            answer=votes[0].answer if votes else None,
            share=votes[0].share if votes else 0.0,
            votes=votes,
            chains=tuple(self.ballots),
            seconds=seconds,
            budget=budget,
            status=status,
            n=n,
            n_finished=finished,
            model=model,
            note=explain(bool(votes), status, n, finished, len(self.ballots) - finished, load_seconds),
        )
