"""solve: sample many chains of thought, vote as they finish, and answer within a number of seconds.

The clock starts with the call, so loading a model by name counts; pass an LLM to spend every second on sampling. The
call returns within one decode step and 50 ms of the deadline; only loading cannot be cut short. It returns earlier
when the chains still to come could not change the vote: their rows are freed and, in `solve_many`, go to the problems
that are still open.

Usage: ``thinkfast.solve("Tom has 3 apples …", seconds=5, model="tiny").answer``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from thinkfast.data.prompts import prompt_tokens
from thinkfast.engine.llm import LLM
from thinkfast.engine.request import Chain, Request, SamplingParams
from thinkfast.errors import InputError
from thinkfast.judge.events import Decided, Event, Started
from thinkfast.judge.poll import Poll
from thinkfast.judge.rounds import first_wave, next_wave, share_out, turns
from thinkfast.judge.solution import Solution
from thinkfast.judge.tally import StopRule, unbeatable
from thinkfast.models.loading import Loaded, load_model

MAX_BATCH = 64  # rows of an engine that is made here


def solve(
    problem: str,
    *,
    seconds: float,
    model: str | Path | LLM = "tiny",
    n: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    on_event: Callable[[Event], None] | None = None,
    max_tokens: int = 512,
    stop_rule: StopRule = unbeatable,
) -> Solution:
    """The answer that most of up to ``n`` chains agree on, by the deadline.

    Arguments:
        problem: the question, as one would ask it.
        seconds: budget of the whole call, wall-clock; ``math.inf`` to wait for the vote however long it takes.
        model: a name or folder as for ``load_model``, or an LLM that is loaded already.
        n: most chains; one at temperature 0, where all would be the same.
        temperature, seed, max_tokens: as for ``SamplingParams``.
        on_event: called with each ``judge.events.Event``; its own time is part of the budget.
        stop_rule: when the vote counts as decided; the default only stops when nothing can change any more.

    Returns:
        The solution. Chains that still run at the deadline vote if they have marked an answer already. If no chain has
        one, ``answer`` is None and ``note`` says why.

    Errors: InputError for an empty or over-long problem or a number out of range; ModelError; CapacityError.
    """
    return solve_many(
        [problem],
        seconds=seconds,
        model=model,
        n=n,
        temperature=temperature,
        seed=seed,
        on_event=on_event,
        max_tokens=max_tokens,
        stop_rule=stop_rule,
    )[0]


def solve_many(
    problems: Sequence[str],
    *,
    seconds: float,
    model: str | Path | LLM = "tiny",
    n: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    on_event: Callable[[Event], None] | None = None,
    max_tokens: int = 512,
    stop_rule: StopRule = unbeatable,
) -> list[Solution]:
    """One solution a problem, in order, all by one deadline and from one run of the engine.

    Every problem gets its first chain before any gets its second, and a problem that is decided leaves its rows to the
    others. Arguments and errors as for ``solve``; ``n`` is per problem, and events carry the problem's number.
    """
    started = time.monotonic()
    if isinstance(problems, str):
        raise InputError("solve_many was given one string", remedy="pass a list of problems, or call solve")
    if not seconds > 0:
        raise InputError(f"seconds is {seconds}, a budget must be a positive number", remedy="pass seconds=5")
    for number, problem in enumerate(problems):
        if not problem.strip():
            which = "the problem" if len(problems) == 1 else f"problem {number}"
            raise InputError(f"{which} is empty", remedy="ask something, such as 'What is 3 times 4?'")
    params = SamplingParams(n, temperature, max_tokens=max_tokens, seed=seed)
    if params.greedy:
        params = SamplingParams(1, temperature, max_tokens=max_tokens, seed=seed)
    if not problems:
        return []
    llm, prompts = _open(model, problems, params)
    polls = [Poll(number, prompt, params, stop_rule) for number, prompt in enumerate(prompts)]
    run = _Run(llm, polls, started, started + seconds, on_event or _ignore)
    loaded = time.monotonic() - started
    late = loaded >= seconds
    if not late:
        run.tell(Started(llm.loaded.name, len(polls), params.n * len(polls), loaded, llm.stats))
        run.sample()
    took = time.monotonic() - started
    lost = loaded if late and not isinstance(model, LLM) else None
    return [poll.solution(llm.loaded.name, took, seconds, lost) for poll in polls]


def _open(
    model: str | Path | LLM, problems: Sequence[str], params: SamplingParams
) -> tuple[LLM, list[tuple[int, ...]]]:
    """The engine, made no larger than these problems need, and their prompts."""
    if isinstance(model, LLM):
        return model, _prompts(model.loaded, problems, model.plan.max_len)
    loaded = load_model(model)
    limit = loaded.spec.max_positions if loaded.spec.n_attention else None
    prompts = _prompts(loaded, problems, limit)
    longest = max(map(len, prompts)) + params.max_tokens
    rows = min(params.n * len(problems), MAX_BATCH)
    return LLM(loaded, rows, longest if limit is None else min(longest, limit)), prompts


def _prompts(loaded: Loaded, problems: Sequence[str], limit: int | None) -> list[tuple[int, ...]]:
    prompts = [tuple(prompt_tokens(loaded.tokenizer, problem)) for problem in problems]
    for number, prompt in enumerate(prompts):
        if limit is not None and len(prompt) >= limit:
            which = "the problem" if len(prompts) == 1 else f"problem {number}"
            raise InputError(
                f"{which} has {len(prompt)} tokens, and {loaded.name} takes {limit} with the chain included",
                remedy=f"shorten it to well under {limit} tokens, or use a model with a longer context",
            )
    return prompts


def _ignore(event: Event) -> None:
    pass


@dataclass(frozen=True, slots=True)
class _Run:
    """One call's sampling; ``started`` and ``deadline`` are times of time.monotonic."""

    llm: LLM
    polls: list[Poll]
    started: float
    deadline: float
    tell: Callable[[Event], None]

    def sample(self) -> None:
        """Until every vote is decided, all chains are done, or the deadline."""
        for requests in self._streams():
            left = self.deadline - time.monotonic()
            if left <= 0:
                return
            stream = self.llm.stream(requests, left if left < math.inf else None)
            # A listener's error or Ctrl-C leaves the loop early; closing frees all that the stream still holds.
            with closing(cast(Generator[Chain], stream)) as chains:
                for chain in chains:
                    self._count(chain)

    def _count(self, chain: Chain) -> None:
        poll = self.polls[int(chain.request.partition("/")[0])]
        for event in poll.count(chain, time.monotonic() - self.started):
            if isinstance(event, Decided):
                for name in poll.asked:
                    self.llm.cancel(name)
            self.tell(event)

    def _streams(self) -> Iterator[Iterable[Request]]:
        """What to ask of the engine, one stream after another; each looks at the clock and the votes again."""
        rows, n = self.llm.plan.max_batch, self.polls[0].params.n
        size = first_wave(n, rows, len(self.polls), self.llm.loaded.model.head_weight.device.type == "cpu")
        while polls := [poll for poll in self.polls if poll.left]:
            if size > 1 and size >= sum(poll.left for poll in polls):
                yield self._rest(polls, rows)
                return
            began = time.monotonic()
            shares = share_out(size, [poll.begun for poll in polls])
            yield [poll.ask(count) for poll, count in zip(polls, shares, strict=True) if count]
            now = time.monotonic()
            rest = sum(poll.left for poll in self.polls)
            size = next_wave(size, now - began, self.deadline - now, rest, rows)

    def _rest(self, polls: list[Poll], rows: int) -> Iterator[Request]:
        """All that is left. The engine draws from this as room appears, so what is decided by then is never begun."""
        if len(polls) == 1:
            yield polls[0].ask(polls[0].left)
            return
        for count in turns(rows, len(polls)):
            if not any(poll.left for poll in polls):
                return
            for poll in polls:
                if poll.left:
                    yield poll.ask(count, turn=True)
