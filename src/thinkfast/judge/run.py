"""One solving: what to ask of the engine next, what to make of each chain, when to stop. A stream of events.

Between two steps the engine asks for requests. The answer depends on what has finished by then: how many rows can
still bring chains home before the deadline (`pace`), which problems deserve them (`allocate`), which votes are decided
(`deciding`). A decided problem's chains are cancelled before the next step and their rows are dealt out again at once.

Usage: ``for event in Play(Live(llm), questions, prompts, params).events(time.monotonic(), seconds=5): ...``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import cast

from thinkfast.engine.request import Chain, Request, SamplingParams
from thinkfast.judge.allocate import UNIFORM, Allocator
from thinkfast.judge.answer import Equivalence
from thinkfast.judge.confidence import Calibration
from thinkfast.judge.events import Answered, Decided, Event, Started
from thinkfast.judge.grader import Grader
from thinkfast.judge.merge import Merger
from thinkfast.judge.pace import Pace
from thinkfast.judge.poll import Poll
from thinkfast.judge.reward import Job
from thinkfast.judge.source import Source
from thinkfast.judge.tally import Ballot, StopRule, Tally, read, unbeatable
from thinkfast.judge.voters import MAJORITY, Voter

READING = 0.03  # seconds after the deadline in which chains are still read; the answer is due within 0.05
LOOKS = 8  # steps between two looks at the clock where nothing has changed
BATCHED = 8  # rows are refilled once an eighth of the width is free: each refill is a fork, or a prefill


@dataclass(frozen=True, slots=True)
class Play:
    """A solving to be: problems with their prompts, from a source, by these rules. read: makes ballots of chains."""

    source: Source
    questions: Sequence[str]
    prompts: Sequence[tuple[int, ...]]
    params: SamplingParams
    voter: Voter = MAJORITY
    stop_rule: StopRule = unbeatable
    allocator: Allocator = UNIFORM
    grader: Grader | None = None
    checker: Equivalence | None = None
    calibration: Calibration | None = None
    read: Callable[[Chain, float], Ballot] = read

    def events(self, started: float, seconds: float, loading: str = "") -> Iterator[Event]:
        """The events of a run that began at ``started``; loading: what was done for it first, where anything was."""
        source, checker = self.source, self.checker
        mergers = [] if checker is None else [Merger(checker) for _ in self.prompts]
        polls = [
            Poll(
                number,
                prompt,
                self.params,
                self.stop_rule,
                Tally(self.voter, mergers[number].root if mergers else str),
                self.calibration,
                self.read,
            )
            for number, prompt in enumerate(self.prompts)
        ]
        loaded = source.now() - started
        if loaded < seconds:
            chains = self.params.n * len(polls)
            yield Started(source.name, len(polls), chains, loaded, source.stats)
            run = Run(source, polls, self.questions, started, started + seconds, self.allocator, self.grader, mergers)
            with closing(run.events()) as events:
                yield from events
        took = source.now() - started
        lost = f"{loading} took {loaded:.2f} s" if loaded >= seconds and loading else None
        scoring = 0.0 if self.grader is None else self.grader.seconds
        for poll in polls:
            yield Answered(poll.number, poll.solution(source.name, took, seconds, lost, scoring))


@dataclass(slots=True)
class Run:
    """``started`` and ``deadline`` are times of the source's clock; ``mergers`` has one a poll, or none."""

    source: Source
    polls: Sequence[Poll]
    questions: Sequence[str]
    started: float
    deadline: float
    allocator: Allocator
    grader: Grader | None = None
    mergers: Sequence[Merger] = ()
    pace: Pace = field(init=False)
    _flying: dict[tuple[str, int], int] = field(init=False, default_factory=dict)
    _cut: set[tuple[str, int]] = field(init=False, default_factory=set)
    _changed: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        self.pace = Pace(self.source.rows, self.source.flat)

    def events(self) -> Generator[Event]:
        """Until every vote is decided, all chains are done, nothing can finish any more, or the deadline."""
        left = self.deadline - self.source.now()
        if left <= 0:
            return
        if self.grader is not None:
            left -= min(self.grader.reserve, left / 2)
        stream = self.source.stream(self._requests(), left if left < math.inf else None)
        try:
            # A listener's error or Ctrl-C leaves the loop early; closing frees all that the stream still holds.
            with closing(cast(Generator[Chain], stream)) as chains:
                for chain in chains:
                    yield from self._count(chain)
            if self.grader is not None:
                yield from self._grade(self.grader)
            yield from self._told(self._joined())
        finally:
            for merger in self.mergers:
                merger.close()

    def _count(self, chain: Chain) -> Iterator[Event]:
        poll = self.polls[int(chain.request.partition("/")[0])]
        self._flying.pop((chain.request, chain.index), None)
        self._changed = True
        now = self.source.now()
        if now >= self.deadline + READING:
            poll.skip(chain, now - self.started)
            return
        events = poll.count(chain, now - self.started, late=now >= self.deadline)
        ballot = poll.ballots[-1]
        if ballot.finished:
            self.pace.ended(len(chain.tokens))
        if self.mergers and ballot.key is not None:
            self.mergers[poll.number].seen(ballot.key, ballot.answer or ballot.key)
        yield from self._told([*events, *self._joined()])
        if self.grader is not None and ballot.key is not None:
            self.grader.add(poll, Job(self.questions[poll.number], poll.prompt, chain))
            if self.grader.due(self.deadline - self.source.now()):
                yield from self._grade(self.grader)

    def _joined(self) -> list[Event]:
        """Recounts of the votes in which a checker has found two answers to be one."""
        seconds = self.source.now() - self.started
        found = [poll for poll, merger in zip(self.polls, self.mergers, strict=False) if merger.collect()]
        return [event for poll in found for event in poll.recount(seconds)]

    def _grade(self, grader: Grader) -> Iterator[Event]:
        for poll, ballot in grader.grade(self.deadline - self.source.now()):
            yield from self._told(poll.score(ballot, self.source.now() - self.started))

    def _told(self, events: Sequence[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Decided):
                for name in self.polls[event.problem].asked:
                    self.source.cancel(name)
            yield event

    def _requests(self) -> Iterator[Request | None]:
        """What to ask for, each time the engine looks; ends when nothing more will be begun."""
        stats, steps, seconds, rows, looks = self.source.stats, -1, 0.0, 0, 0
        while True:
            if steps >= 0 and stats.steps > steps:
                self.pace.stepped(rows, (stats.decode_seconds - seconds) / (stats.steps - steps))
            steps, seconds, rows = stats.steps, stats.decode_seconds, self.source.running
            looks += 1
            if self._changed or looks % LOOKS == 0:
                self._changed = False
                began = self._begin(rows, steps)
                if began is None:
                    return
                for request in began:
                    rows += request.params.n
                    yield request
            yield None

    def _begin(self, running: int, steps: int) -> list[Request] | None:
        """What to begin now; None when there will be nothing more."""
        left = self.deadline - self.source.now()
        polls = [poll for poll in self.polls if poll.left]
        progress = [steps - begun for begun in self._flying.values()]
        if not self.source.flat and progress:
            self._cut_hopeless(left, progress)
        if not polls:
            return [] if running else None
        width = self.pace.width(left, progress, self.polls[0].params.max_tokens)
        if not self.pace.known:
            width = max(width, min(len(polls), self.source.rows))  # nobody is left without a chain
        elif not width and not running:
            # Nothing is likely to finish. Where nobody has answered, one chain is the best use of the time there is.
            polls = [poll for poll in polls if poll.tally.leader is None and left > 0]
            width = min(1, len(polls))
        count = min(width - running, self.source.room)
        if count <= 0 or (count < width // BATCHED and running):
            return [] if running else None
        shares = self.allocator.share(polls, count)
        requests = [poll.ask(share) for poll, share in zip(polls, shares, strict=True) if share]
        for request in requests:
            first = request.first_index
            self._flying.update({(request.id, i): steps for i in range(first, first + request.params.n)})
        return requests

    def _cut_hopeless(self, left: float, progress: Sequence[int]) -> None:
        names = list(self._flying)
        for at in self.pace.hopeless(left, progress, self.polls[0].params.max_tokens):
            if names[at] not in self._cut:
                self._cut.add(names[at])
                self.source.cancel(*names[at])
