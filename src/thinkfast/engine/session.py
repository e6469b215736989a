"""A session: requests in, chains out, until all are done, cancelled or out of time.

Between two decode steps it looks at the clock and at cancellations, lets samples enter, and, only when a step says
that some row ended, turns those rows into chains and gives their places away. A prompt longer than may be prefilled
between two steps is prefilled in pieces, with a step behind each; until it is complete nobody else is admitted.

Usage: ``yield from Session(runner, decode, limits, started, deadline).run(requests)``; see engine.llm.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress

import numpy as np

from thinkfast.engine.cache import PAGE, PromptHandle
from thinkfast.engine.pages import NONE, Ints
from thinkfast.engine.request import Chain, Finish, Request
from thinkfast.engine.rng import sample_key
from thinkfast.engine.rows import Code, RowStart, Said
from thinkfast.engine.runner import Start
from thinkfast.engine.runners import AnyRunner
from thinkfast.engine.scheduler import Admission, Limits, Scheduler
from thinkfast.engine.stops import find_stop

IDLE_SECONDS = 0.001  # between two looks at an iterator that has nothing yet, with nothing running


@dataclass(slots=True)
class Stats:
    """What the engine has done since it was made; seconds are wall-clock. A device works while the host is elsewhere:
    there a prefill's seconds are the device's, and the others are the decode's. longest_prefill: most seconds of one
    between two steps, which is for how long rows that run wait for others' prompts.
    """

    generated_tokens: int = 0
    prefill_tokens: int = 0
    steps: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    longest_prefill: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over the seconds of prefill and decode together."""
        seconds = self.prefill_seconds + self.decode_seconds
        return self.generated_tokens / seconds if seconds else 0.0


@dataclass(frozen=True, slots=True)
class Codec:
    """Text at the engine's edge. decode: token ids of several rows to their texts; end_ids: end-of-sequence tokens,
    never part of the text; stop: the number of the row table for some stop strings (0 for none).
    """

    decode: Callable[[Sequence[Sequence[int]]], list[str]]
    end_ids: frozenset[int]
    stop: Callable[[tuple[str, ...]], int]


@dataclass(frozen=True, slots=True)
class Sample:
    """One row's origin."""

    request: Request
    index: int


@dataclass(slots=True)
class _Growing:
    """A prompt of which ``pieces`` are still to be prefilled, its samples, which enter when there are none, and those
    that are to be cancelled then.
    """

    prompt: str
    pieces: deque[tuple[int, ...]]
    admissions: list[Admission]
    cancelled: list[tuple[str, int | None]] = field(default_factory=list)


def pieces(prompt: tuple[int, ...], most: int) -> deque[tuple[int, ...]]:
    """``prompt`` in pieces of at most ``most`` tokens, or a page where that is more: of about one size, and whole pages
    but for the last.
    """
    if len(prompt) <= most:
        return deque([prompt])
    pages = -(-len(prompt) // PAGE)
    count = -(-pages // max(1, most // PAGE))
    size = PAGE * -(-pages // count)
    return deque(prompt[begin : begin + size] for begin in range(0, len(prompt), size))


@dataclass(slots=True)
class Session:
    """One run; ``started`` and ``deadline`` are times of time.monotonic; ``fair`` as for the scheduler."""

    runner: AnyRunner
    codec: Codec
    limits: Limits
    stats: Stats
    started: float
    deadline: float
    fair: bool = False
    _scheduler: Scheduler = field(init=False)
    _lineup: list[Sample] = field(init=False, default_factory=list)
    _open: dict[str, PromptHandle] = field(init=False, default_factory=dict)
    _growing: _Growing | None = field(init=False, default=None)
    # Wall seconds of prefills' launches, by what their first prompt then was, until the device tells its own.
    _launched: dict[PromptHandle, float] = field(init=False, default_factory=dict)
    # Appended to by other threads; a deque's ends are safe to share.
    _cancelled: deque[tuple[str, int | None]] = field(init=False, default_factory=deque)

    def __post_init__(self) -> None:
        self._scheduler = Scheduler(self.limits, self.fair)

    @property
    def running(self) -> int:
        """Rows in flight, with those whose prompt is not complete."""
        growing = self._growing.admissions if self._growing is not None else ()
        return len(self._lineup) + sum(a.count for a in growing)

    @property
    def room(self) -> int:
        """Rows that neither run nor are spoken for."""
        return self._scheduler.room

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one running sample of it, before the next step; may be called from another thread."""
        self._cancelled.append((request_id, index))

    def run(self, requests: Iterator[Request | None]) -> Iterator[Chain]:
        """Chains in the order in which they finish; a None among the requests says "nothing yet, ask again"."""
        try:
            more = True
            while True:
                more = more and self._pull(requests)
                if self._cancelled:
                    yield from self._cancel()
                if time.monotonic() >= self.deadline:
                    yield from self._end(dict.fromkeys(range(len(self._lineup)), "deadline"))
                    return
                admissions = self._scheduler.admit() if self._growing is None else []
                self._close_unread()  # before others take their pages
                if admissions or self._growing is not None:
                    first = len(self._lineup)
                    yield from self._settle(first, self._start(admissions))
                if self._lineup:
                    yield from self._settle(0, self._step())
                elif self._growing is None and not more and not self._scheduler.waiting:
                    return
                elif self._growing is None and more:
                    time.sleep(IDLE_SECONDS)
        finally:
            self._end(dict.fromkeys(range(len(self._lineup)), "cancelled"))
            for handle in self._open.values():
                self.runner.close(handle)
            self._open.clear()

    def _pull(self, requests: Iterator[Request | None]) -> bool:
        """Draw requests while there is room for their samples; False when there are no more."""
        while self._scheduler.wants_more:
            try:
                request = next(requests)
            except StopIteration:
                return False
            if request is None:
                return True
            self._scheduler.submit(request)
        return True

    def _start(self, admissions: Sequence[Admission]) -> Ints:
        """Prefill what is new, or the next piece of it; fork what enters, from a long prompt nothing before its last
        piece. Returns the new rows' codes.
        """
        began = time.monotonic()
        prefilled: PromptHandle | None
        if (growing := self._growing) is not None:
            prefilled = self._grow(growing)
            admissions = growing.admissions if self._growing is None else ()
        else:
            prefilled = self._prefill(admissions)
            if self._growing is not None:
                admissions = [a for a in admissions if a.prompt != self._growing.prompt]
        codes = self._fork(admissions) if admissions else NONE
        took = time.monotonic() - began
        self.stats.prefill_seconds += took
        if prefilled is not None:
            self._launched[prefilled] = took
            self._split()
        return codes

    def _prefill(self, admissions: Sequence[Admission]) -> PromptHandle | None:
        """Prefill the prompts that are new, of a long one the first piece; returns the first of them."""
        new = [a for a in admissions if a.new]
        if not new:
            return None
        # A long one is the only one that is new: no other fits beside it between two steps.
        prompts = [pieces(a.request.prompt, self.limits.prefill_tokens) for a in new]
        firsts = [prompt.popleft() for prompt in prompts]
        handles = self.runner.prefill(firsts)
        self._open.update(zip([a.prompt for a in new], handles, strict=True))
        self.stats.prefill_tokens += sum(map(len, firsts))
        if prompts[0]:
            key = new[0].prompt
            self._growing = _Growing(key, prompts[0], [a for a in admissions if a.prompt == key])
        return handles[0]

    def _grow(self, growing: _Growing) -> PromptHandle:
        """Prefill the next piece."""
        piece = growing.pieces.popleft()
        handle = self._open[growing.prompt] = self.runner.extend(self._open[growing.prompt], piece)
        self.stats.prefill_tokens += len(piece)
        if not growing.pieces:
            self._growing = None
            self._cancelled += growing.cancelled
        return handle

    def _fork(self, admissions: Sequence[Admission]) -> Ints:
        """The rows that enter; returns their codes."""
        starts, entering = [], []
        for a in admissions:
            request, params = a.request, a.request.params
            samples = [Sample(request, request.first_index + a.first + i) for i in range(a.count)]
            limit, stop = self._scheduler.new_tokens(request), self.codec.stop(params.stop)
            keys = [sample_key(params.seed, request.name or request.id, sample.index) for sample in samples]
            rows = tuple(RowStart(key, params, limit, len(request.prompt), stop) for key in keys)
            starts.append(Start(self._open[a.prompt], rows, a.last))
            entering += samples
        codes = self.runner.fork(starts)
        # Only now, lest a fork that breaks off leave rows that nobody has, or prompts that nobody closes.
        self._lineup += entering
        for a in admissions:
            if a.last:
                del self._open[a.prompt]
        self.stats.generated_tokens += len(codes)
        return codes

    def _step(self) -> Ints:
        began = time.monotonic()
        codes = self.runner.step()
        self.stats.steps += 1
        self.stats.generated_tokens += len(codes)
        self.stats.decode_seconds += time.monotonic() - began
        self._split()
        return codes

    def _split(self) -> None:
        """Of a prefill on a device the host has seen the launch; the rest of it passed in waiting for a step."""
        ended = self.runner.prefilled()
        if ended is None:
            self.stats.longest_prefill = max([self.stats.longest_prefill, *self._launched.values()])
            self._launched.clear()
            return
        for first, seconds in ended.items():
            if (took := self._launched.pop(first, None)) is not None:
                self.stats.longest_prefill = max(self.stats.longest_prefill, seconds)
                self.stats.prefill_seconds += seconds - took
                self.stats.decode_seconds -= seconds - took

    def _settle(self, first: int, codes: Ints) -> Sequence[Chain]:
        """End the rows, first .. on, whose codes say so."""
        if not codes.any():
            return ()
        ended: dict[int, Finish] = {}
        doubtful: list[int] = []
        for row, code in zip((first + np.flatnonzero(codes)).tolist(), codes[codes != 0].tolist(), strict=True):
            if code == Code.MAYBE_STOP:
                doubtful.append(row)
            else:
                ended[row] = "length" if code == Code.LENGTH else "stop" if code == Code.EOS else "error"
        for row, said in zip(doubtful, self.runner.said(doubtful), strict=True):
            if find_stop(self._texts([said])[0], self._lineup[row].request.params.stop) is not None:
                ended[row] = "stop"
        return self._end(ended)

    def _cancel(self) -> Sequence[Chain]:
        asked = {self._cancelled.popleft() for _ in range(len(self._cancelled))}
        cancelled = {request_id for request_id, index in asked if index is None}
        for request_id in sorted(cancelled):
            self._scheduler.cancel(request_id)
        if self._growing is not None:
            self._give_up(self._growing, asked, cancelled)
        self._close_unread()
        rows = [
            row
            for row, sample in enumerate(self._lineup)
            if sample.request.id in cancelled or (sample.request.id, sample.index) in asked
        ]
        return self._end(dict.fromkeys(rows, "cancelled"))

    def _give_up(self, growing: _Growing, asked: set[tuple[str, int | None]], cancelled: set[str]) -> None:
        """Samples of ``cancelled`` requests do not enter when the prompt is there; single ones end when they have."""
        growing.cancelled += [one for one in asked if one[0] in {a.request.id for a in growing.admissions}]
        for a in [a for a in growing.admissions if a.request.id in cancelled]:
            growing.admissions.remove(a)
            for _ in range(a.count):
                self._scheduler.finished(a.request.id)
            if a.last:
                self._close(a.prompt)
        if not growing.admissions:
            self._scheduler.give_up(growing.prompt)

    def _end(self, ended: dict[int, Finish]) -> Sequence[Chain]:
        """Turn rows into chains and give their places away at once."""
        if not ended:
            return ()
        said = self.runner.said(list(ended))
        seconds = time.monotonic() - self.started
        lineup = self._lineup
        # The token that came with an error was drawn from nothing.
        said = [
            replace(words, tokens=words.tokens[:-1], logprobs=words.logprobs[:-1]) if finish == "error" else words
            for finish, words in zip(ended.values(), said, strict=True)
        ]
        wanted = [lineup[row].request.params.detokenize for row in ended]
        texts = iter(self._texts(list(compress(said, wanted))))
        chains = [
            self._chain(lineup[row], finish, words, next(texts) if wants else "", seconds)
            for (row, finish), words, wants in zip(ended.items(), said, wanted, strict=True)
        ]
        for row in ended:
            self._scheduler.finished(lineup[row].request.id)
        moves = self.runner.release(list(ended))
        for src, dst in zip(moves.src.tolist(), moves.dst.tolist(), strict=True):
            lineup[dst] = lineup[src]
        del lineup[len(lineup) - len(ended) :]
        return chains

    def _close_unread(self) -> None:
        for prompt in self._scheduler.unread():
            self._close(prompt)

    def _close(self, prompt: str) -> None:
        self.runner.close(self._open.pop(prompt))
        if self._growing is not None and self._growing.prompt == prompt:
            self._growing = None

    def _texts(self, said: Sequence[Said]) -> list[str]:
        ends = self.codec.end_ids
        return self.codec.decode(
            [
                words.tokens
                if ends.isdisjoint(words.tokens)
                else [token for token in words.tokens if token not in ends]
                for words in said
            ]
        )

    def _chain(self, sample: Sample, finish: Finish, said: Said, text: str, seconds: float) -> Chain:
        params, logprobs = sample.request.params, said.logprobs
        if params.stop and (cut := find_stop(text, params.stop)) is not None:
            text, finish = text[:cut], "stop"
        return Chain(
            request=sample.request.id,
            index=sample.index,
            tokens=said.tokens,
            text=text,
            logprob=float(logprobs.sum(dtype=np.float64)),
            logprobs=tuple(logprobs.tolist()) if params.logprobs else None,
            finish=finish,
            seconds=seconds,
            prompt_tokens=len(sample.request.prompt),
            certainty=said.certainty,
            least_logprob=float(logprobs.min()) if len(logprobs) else math.nan,
            hidden=said.hidden,
        )
