"""Play a sample log again: the same scheduling, voting and stopping as live, on a clock made of measured step times.

Why: a log of one long run tells what any shorter budget, any stop rule and any allocator would have answered, at no
cost. Chains come from the log; what a decode step of so many rows and a prompt token cost was measured on the machine
(`report.pacing`). `judge.run.Play` is the same code as in `solve`; only its source of chains is another.

A chain that the deadline cuts has no vote here, though live it may have marked its answer already.

Usage: ``answers = replay(log, seconds=10, setting=Setting(stop_rule=Posterior(0.95)), order=0)``.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from thinkfast.engine.request import Chain, Finish, Request, SamplingParams
from thinkfast.engine.session import Stats
from thinkfast.errors import InputError
from thinkfast.judge.allocate import UNIFORM, Allocator
from thinkfast.judge.confidence import Calibration
from thinkfast.judge.events import Answered
from thinkfast.judge.run import Play
from thinkfast.judge.solution import Solution
from thinkfast.judge.tally import Ballot, StopRule, unbeatable
from thinkfast.judge.voters import MAJORITY, Voter
from thinkfast.report.samples import Row

STRIDE = 4  # steps played at once where no chain ends in them
IDLE_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What a machine needs: steps, (rows, seconds of a step) in order of rows; prefill, seconds of a prompt token."""

    steps: tuple[tuple[int, float], ...]
    prefill: float

    def step(self, rows: int) -> float:
        """Seconds of a step of ``rows`` rows, between or beyond the measured ones in proportion."""
        (first, least), *_ = self.steps
        if rows <= first:
            return least
        for (a, x), (b, y) in pairwise(self.steps):
            if rows <= b:
                return x + (y - x) * (rows - a) / (b - a)
        last, most = self.steps[-1]
        return most * rows / last


@dataclass(frozen=True, slots=True)
class Recording:
    """One system's log, ready to play: rows of every problem in order of sample, prompts' lengths, step times."""

    system: str
    problems: tuple[str, ...]
    rows: tuple[tuple[Row, ...], ...]
    prompt_tokens: tuple[int, ...]
    times: StepTimes
    width: int
    flat: bool = False

    @property
    def samples(self) -> int:
        """Samples that every problem has."""
        return min(map(len, self.rows))

    def right(self, number: int) -> frozenset[str]:
        """The keys of a problem that are right."""
        return frozenset(row.key for row in self.rows[number] if row.correct and row.key is not None)


def record(
    rows: Iterable[Row], system: str, problems: Sequence[str], prompts: Mapping[str, int], times: StepTimes, width: int
) -> Recording:
    """The recording of ``system`` in a log. Errors: InputError where a problem has no sample."""
    found: dict[str, list[Row]] = {problem: [] for problem in problems}
    for row in rows:
        if row.system == system and row.problem in found:
            found[row.problem].append(row)
    if empty := next((problem for problem, mine in found.items() if not mine), None):
        raise InputError(
            f"the log has no sample of {empty!r} by {system!r}, so it cannot be replayed",
            remedy="replay a log in which every problem has samples",
        )
    ordered = tuple(tuple(sorted(mine, key=lambda row: row.sample)) for mine in found.values())
    return Recording(system, tuple(found), ordered, tuple(prompts[p] for p in found), times, width)


@dataclass(frozen=True, slots=True)
class Setting:
    """How to solve: as the options of `judge.solve`. n: most chains a problem, None for all of the log."""

    n: int | None = None
    voter: Voter = MAJORITY
    stop_rule: StopRule = unbeatable
    allocator: Allocator = UNIFORM
    calibration: Calibration | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a replay answered for one problem. begun: chains, tokens: of all that ran, cut ones included."""

    problem: str
    right: bool
    begun: int
    tokens: int
    solution: Solution


def replay(
    log: Recording,
    seconds: float,
    setting: Setting | None = None,
    order: int | None = None,
    only: Sequence[int] | None = None,
) -> list[Answer]:
    """Solve all problems of ``log``, or ``only`` those, within ``seconds``.

    order: seed of a random order of every problem's samples; None for the order of the log.
    """
    setting = setting or Setting()
    numbers = range(len(log.problems)) if only is None else only
    samples = [list(log.rows[number]) for number in numbers]
    if order is not None:
        for number, mine in zip(numbers, samples, strict=True):
            random.Random(f"{order} {number}").shuffle(mine)
    n = log.samples if setting.n is None else setting.n
    if n > log.samples:
        raise InputError(f"n is {n} and the log has {log.samples} samples", remedy=f"choose n in 1..{log.samples}")
    player = Player(log, samples)
    play = Play(
        player,
        [""] * len(samples),
        [(0,) * log.prompt_tokens[number] for number in numbers],
        SamplingParams(n, max_tokens=1 << 20),
        voter=setting.voter,
        stop_rule=setting.stop_rule,
        allocator=setting.allocator,
        calibration=setting.calibration,
        read=player.read,
    )
    answers = []
    for event in play.events(0.0, seconds):
        if isinstance(event, Answered):
            number, solution = numbers[event.problem], event.solution
            key = solution.votes[0].key if solution.votes else None
            begun = len(solution.chains)
            answers.append(Answer(log.problems[number], key in log.right(number), begun, solution.tokens, solution))
    return answers


@dataclass(slots=True)
class _Flight:
    request: Request
    index: int
    row: Row
    tokens: int = 0


@dataclass(slots=True)
class Player:
    """A `judge.source.Source` that plays ``samples``, one list a problem, on a clock of its own."""

    log: Recording
    samples: Sequence[Sequence[Row]]
    stats: Stats = field(default_factory=Stats)
    clock: float = 0.0
    _lineup: list[_Flight] = field(default_factory=list)
    _waiting: deque[_Flight] = field(default_factory=deque)
    _cancelled: set[tuple[str, int | None]] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.log.system

    @property
    def rows(self) -> int:
        return self.log.width

    @property
    def flat(self) -> bool:
        return self.log.flat

    @property
    def running(self) -> int:
        return len(self._lineup)

    @property
    def room(self) -> int:
        return max(0, self.rows - len(self._lineup) - len(self._waiting))

    def now(self) -> float:
        return self.clock

    def cancel(self, request_id: str, index: int | None = None) -> None:
        self._cancelled.add((request_id, index))

    def read(self, chain: Chain, seconds: float) -> Ballot:
        """The ballot as the log has it; a cut chain has none."""
        if chain.finish in ("deadline", "cancelled"):
            return Ballot(chain, None, None, seconds)
        row = self.samples[int(chain.request.partition("/")[0])][chain.index]
        return Ballot(chain, row.answer, row.key, seconds, row.score)

    def stream(self, requests: Iterable[Request | None], seconds: float | None) -> Iterator[Chain]:
        """Chains as they finish, as `engine.session.Session.run`."""
        asked, more = iter(requests), True
        deadline = float("inf") if seconds is None else self.clock + seconds
        while True:
            while more and self.room:
                try:
                    request = next(asked)
                except StopIteration:
                    more = False
                    break
                if request is None:
                    break
                mine = self.samples[int(request.name)]
                first = request.first_index
                self._waiting += [_Flight(request, i, mine[i]) for i in range(first, first + request.params.n)]
            yield from self._drop()
            if self.clock >= deadline:
                yield from self._cut(self._lineup, "deadline")
                return
            self._admit()
            if not self._lineup:
                if not more:
                    return
                self.clock += IDLE_SECONDS
                continue
            step = self.log.times.step(len(self._lineup))
            count = max(1, min(STRIDE, *(f.row.tokens - f.tokens for f in self._lineup)))
            count = max(1, min(count, int((deadline - self.clock) / step) + 1 if deadline < float("inf") else count))
            self.clock += count * step
            self.stats.steps += count
            self.stats.decode_seconds += count * step
            self.stats.generated_tokens += count * len(self._lineup)
            for flight in self._lineup:
                flight.tokens += count
            done = [f for f in self._lineup if f.tokens >= f.row.tokens]
            if done:
                self._lineup = [f for f in self._lineup if f.tokens < f.row.tokens]
                for flight in done:
                    yield self._chain(flight, "stop" if flight.row.finish == "stop" else "length")

    def _admit(self) -> None:
        # A prompt stays prefilled while a chain of it runs (Request.keep).
        there = {flight.request.name for flight in self._lineup}
        while self._waiting and len(self._lineup) < self.rows:
            flight = self._waiting.popleft()
            if flight.request.name not in there:
                there.add(flight.request.name)
                self.clock += self.log.times.prefill * len(flight.request.prompt)
                self.stats.prefill_tokens += len(flight.request.prompt)
            flight.tokens = 1
            self._lineup.append(flight)

    def _drop(self) -> Iterator[Chain]:
        if self._cancelled:
            out = [f for f in self._lineup if self._is_out(f)]
            self._lineup = [f for f in self._lineup if not self._is_out(f)]
            self._waiting = deque(f for f in self._waiting if not self._is_out(f))
            self._cancelled.clear()
            yield from self._cut(out, "cancelled")

    def _is_out(self, flight: _Flight) -> bool:
        name = flight.request.id
        return (name, None) in self._cancelled or (name, flight.index) in self._cancelled

    def _cut(self, flights: Sequence[_Flight], finish: Finish) -> Iterator[Chain]:
        for flight in flights:
            yield self._chain(flight, finish)

    def _chain(self, flight: _Flight, finish: Finish) -> Chain:
        row = flight.row
        tokens = (0,) * min(flight.tokens, row.tokens)
        return Chain(
            flight.request.id,
            flight.index,
            tokens,
            row.text,
            row.logprob if row.logprob is not None else float("nan"),
            None,
            finish,
            self.clock,
            len(flight.request.prompt),
            row.certainty,
        )
