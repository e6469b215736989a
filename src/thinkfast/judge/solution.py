"""Solution: what `solve` returns, whatever happened before the deadline.

Usage: ``solution = solve(problem, seconds=5); solution.answer, solution.share, solution.note``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from thinkfast.judge.tally import Ballot, Standing

Status = Literal["decided", "complete", "deadline"]


@dataclass(frozen=True, slots=True)
class Solution:
    """The best answer that the seconds allowed, and how it came about.

    answer: None where no chain stated one; ``note`` then says why. share: the answer's part of the votes, those
    without an answer included. confidence: how often such a vote was right on problems for development, None where the
    model has no calibration. votes: every answer, the winner first. chains: all that came back, in that order, the
    cut ones too. seconds: from the call to the return; budget: what was given. status: "decided" (stopped with chains
    to spare, because the vote could not change), "complete" (all n chains finished) or "deadline". n: chains asked
    for; n_finished: those that came to their own end. scoring_seconds: what a reward model took of the seconds. note:
    the status in a sentence.
    """

    answer: str | None
    share: float
    confidence: float | None
    votes: tuple[Standing, ...]
    chains: tuple[Ballot, ...]
    seconds: float
    budget: float
    status: Status
    n: int
    n_finished: int
    model: str
    voter: str
    scoring_seconds: float
    note: str

    @property
    def decided_early(self) -> bool:
        """Whether chains were spared because the vote was decided."""
        return self.status == "decided"

    @property
    def tokens(self) -> int:
        """Tokens sampled, those of cut chains included."""
        return sum(len(ballot.chain.tokens) for ballot in self.chains)

    @property
    def sample(self) -> Ballot | None:
        """The chain to show: the first to vote for the answer, one that came to its end if there is one."""
        if not self.votes:
            return None
        voters = [ballot for ballot in self.chains if ballot.key == self.votes[0].key]
        return next((ballot for ballot in voters if ballot.finished), voters[0])

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all but the chains, of which only ``sample`` is kept. An endless budget is None."""
        shown = self.sample
        return {
            "answer": self.answer,
            "share": self.share,
            "confidence": self.confidence,
            "voter": self.voter,
            "status": self.status,
            "note": self.note,
            "votes": [{"answer": s.answer, "key": s.key, "count": s.count, "share": s.share} for s in self.votes],
            "scoring_seconds": self.scoring_seconds,
            "n": self.n,
            "n_finished": self.n_finished,
            "decided_early": self.decided_early,
            "seconds": self.seconds,
            "budget": self.budget if self.budget < float("inf") else None,
            "tokens": self.tokens,
            "model": self.model,
            "sample": None
            if shown is None
            else {
                "index": shown.chain.index,
                "text": shown.chain.text,
                "tokens": len(shown.chain.tokens),
                "finish": shown.chain.finish,
                "seconds": shown.seconds,
            },
        }


BROKEN = "the model's logits are not finite: its weights are damaged, or its dtype is too narrow"


def explain(answered: bool, status: Status, n: int, finished: int, cut: int, lost: str | None) -> str:
    """One sentence on how a problem ended. lost: what took all the time, where no chain could start."""
    if lost is not None:
        return f"{lost}, so the time was up before a chain could start"
    of = f"{finished} of {n} chains" if n > 1 else f"{finished} of 1 chain"
    if status == "decided":
        return f"decided after {of}"
    if status == "complete":
        done = f"all {n} chains finished" if n > 1 else "the chain finished"
        return done if answered else f"{done}, but no answer was found in {'them' if n > 1 else 'it'}"
    if finished or answered:
        without = "" if answered else "; no answer was found in them"
        return f"time was up after {of}{without}"
    begun = f"{cut} had begun" if cut else "none had begun"
    return f"time was up before a chain finished ({begun}): give it more seconds"
