"""The grader: chains to a reward model in batches, between two steps, never past the deadline.

Scoring stops the sampling while it lasts, and its seconds are counted. What it costs is learned as it goes; a batch is
only begun if it will be over in time, and what is left unscored at the deadline votes as an average chain.

Usage: ``grader = Grader(scorer); grader.add(poll, job); grader.grade(left=2.0)``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from thinkfast.engine.request import Chain
from thinkfast.errors import ModelError
from thinkfast.judge.poll import Poll
from thinkfast.judge.reward import Job, Scorer
from thinkfast.judge.tally import Ballot

BATCH = 16
MARGIN = 1.5  # times the seconds expected, for a batch to be safe before the deadline


@dataclass(slots=True)
class Grader:
    """``seconds`` and ``scored`` tell what it has cost and done so far."""

    scorer: Scorer
    batch: int = BATCH
    seconds: float = 0.0
    scored: int = 0
    _waiting: list[tuple[Poll, Job]] = field(default_factory=list)

    @property
    def each(self) -> float:
        """Seconds of a chain, as measured; 0 before the first."""
        return self.seconds / self.scored if self.scored else 0.0

    @property
    def reserve(self) -> float:
        """Seconds to keep free at the end, for the chains that finish last."""
        return MARGIN * self.batch * self.each

    def warm(self, question: str, prompt: tuple[int, ...]) -> None:
        """Score a made-up chain, so that what a chain costs is known before the first batch. Errors: as `grade`."""
        chain = Chain("warm-up", 0, prompt, question, 0.0, None, "stop", 0.0, len(prompt))
        began = time.monotonic()
        checked(self.scorer, [Job(question, prompt, chain)] * 2)
        self.seconds += time.monotonic() - began
        self.scored += 2

    def add(self, poll: Poll, job: Job) -> None:
        """A chain to be scored."""
        self._waiting.append((poll, job))

    def due(self, left: float) -> bool:
        """Whether to score now: a batch is full, or soon there will be no time for what waits."""
        waiting = len(self._waiting)
        return waiting >= self.batch or (waiting > 0 and left < 2 * MARGIN * waiting * self.each)

    def grade(self, left: float) -> Iterator[tuple[Poll, Ballot]]:
        """Score what waits, as far as ``left`` seconds go; the ballots with their scores.

        Errors: ModelError where a score is not finite.
        """
        fits = math.inf if not self.each else left / (MARGIN * self.each)
        while self._waiting and left > 0 and fits >= 1:
            size = int(min(self.batch, len(self._waiting), fits))
            part, self._waiting = self._waiting[:size], self._waiting[size:]
            began = time.monotonic()
            scores = checked(self.scorer, [job for _, job in part])
            took = time.monotonic() - began
            self.seconds += took
            self.scored += size
            left -= took
            fits = left / (MARGIN * self.each) if self.each else math.inf
            for (poll, job), score in zip(part, scores, strict=True):
                ballot = next(b for b in poll.ballots if b.chain is job.chain)
                yield poll, replace(ballot, score=score)


def checked(scorer: Scorer, jobs: list[Job]) -> list[float]:
    """The scores of ``jobs``. Errors: ModelError where one is missing or not finite, naming the chain."""
    scores = scorer.score(jobs)
    if len(scores) != len(jobs):
        raise ModelError(
            f"{scorer.name} gave {len(scores)} scores for {len(jobs)} chains", remedy="return one score a chain"
        )
    for job, score in zip(jobs, scores, strict=True):
        if not math.isfinite(score):
            raise ModelError(
                f"{scorer.name} scored chain {job.chain.index} of {job.chain.request!r} {score}",
                remedy="load the reward model in fp32, or check its weights",
            )
    return scores
