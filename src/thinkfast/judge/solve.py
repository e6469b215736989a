"""solve: sample many chains of thought, vote as they finish, and answer within a number of seconds.

The clock starts with the call, so loading a model by name counts; pass an LLM to spend every second on sampling. What
importing this module took before, two to four seconds with torch, does not. The call returns within one decode step and
50 ms of the deadline; only loading, and a listener's own time, cannot be cut short. It returns earlier when the vote is
decided, or when no further chain could finish in time. In `solve_many` the rows of a decided problem go to the problems
that are still open.

Usage: ``thinkfast.solve("Tom has 3 apples …", seconds=5, model="tiny").answer``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

from thinkfast.data.prompts import prompt_tokens
from thinkfast.engine.cache import PAGE
from thinkfast.engine.llm import LLM
from thinkfast.engine.native import compiles_first
from thinkfast.engine.request import SamplingParams
from thinkfast.errors import InputError
from thinkfast.judge.allocate import UNIFORM, Allocator, find_allocator
from thinkfast.judge.answer import Equivalence
from thinkfast.judge.confidence import Calibration, of_folder
from thinkfast.judge.events import Answered, Event
from thinkfast.judge.grader import Grader
from thinkfast.judge.reward import Scorer
from thinkfast.judge.run import Play
from thinkfast.judge.solution import Solution
from thinkfast.judge.source import Live
from thinkfast.judge.tally import StopRule, unbeatable
from thinkfast.judge.verifier import Verifier
from thinkfast.judge.voters import MAJORITY, Voter, find_voter
from thinkfast.models.loading import Loaded, load_as

MAX_BATCH = {"cpu": 64, "cuda": 512}  # most rows of an engine that is made here


class Options(TypedDict, total=False):
    """What `solve`, `solve_many` and `stream` may be told besides problems, seconds and model.

    n: most chains a problem (64); one at temperature 0, where all would be the same. temperature (1.0), seed (0),
    max_tokens (512): as for `SamplingParams`. voter ("majority"): a name or a `Voter`. stop_rule: when a vote counts
    as decided; the default stops when nothing can change any more. allocator ("uniform"): which problem the next
    chain goes to, a name or an `Allocator`. scorer: a reward model or verifier, for voters that read scores. checker:
    joins answers that only algebra can tell are the same; it works beside the sampling, and one that hangs costs
    nothing. calibration: for the confidence; by default the one beside the model's weights. device ("cpu") and dtype
    ("fp32", on a GPU "bf16"; or "fp8"): for a model given by name; an LLM has its own.
    """

    n: int
    temperature: float
    seed: int
    max_tokens: int
    voter: str | Voter
    stop_rule: StopRule
    allocator: str | Allocator
    scorer: Scorer | None
    checker: Equivalence | None
    calibration: Calibration | None
    device: str
    dtype: str


def solve(
    problem: str,
    *,
    seconds: float,
    model: str | Path | LLM = "tiny",
    on_event: Callable[[Event], None] | None = None,
    **options: Unpack[Options],
) -> Solution:
    """The answer that up to ``n`` chains vote for, by the deadline.

    Arguments:
        problem: the question, as one would ask it.
        seconds: budget of the whole call, wall-clock, without the imports before it; ``math.inf`` to wait for the vote
            however long it takes.
        model: a name or folder as for ``load_model``, or an LLM that is loaded already.
        on_event: called with each ``judge.events.Event``; its own time is part of the budget.
        options: see `Options`.

    Returns:
        The solution. Chains that still run at the deadline vote if they have marked an answer already. If no chain has
        one, ``answer`` is None and ``note`` says why.

    Errors: InputError for an empty or over-long problem or a number out of range; ModelError; CapacityError.
    """
    return solve_many([problem], seconds=seconds, model=model, on_event=on_event, **options)[0]


def solve_many(
    problems: Sequence[str],
    *,
    seconds: float,
    model: str | Path | LLM = "tiny",
    on_event: Callable[[Event], None] | None = None,
    **options: Unpack[Options],
) -> list[Solution]:
    """One solution a problem, in order, all by one deadline and from one run of the engine.

    Every problem gets its first chain before any gets its second, and a problem that is decided leaves its rows to the
    others. Arguments and errors as for ``solve``; ``n`` is per problem, and events carry the problem's number.
    """
    found: dict[int, Solution] = {}
    for event in stream(problems, seconds=seconds, model=model, **options):
        if on_event is not None:
            on_event(event)
        if isinstance(event, Answered):
            found[event.problem] = event.solution
    return [found[number] for number in range(len(problems))]


def stream(
    problems: Sequence[str], *, seconds: float, model: str | Path | LLM = "tiny", **options: Unpack[Options]
) -> Iterator[Event]:
    """The events of `solve_many` as they happen; the last of every problem is `Answered`.

    Sampling goes on only while events are asked for, and the clock never stops. Closing the iterator ends everything;
    the latest `VoteChanged` of a problem is then its best answer.
    """
    started = time.monotonic()
    if isinstance(problems, str):
        raise InputError("solve_many was given one string", remedy="pass a list of problems, or call solve")
    require_seconds(seconds)
    if unknown := sorted(set(options) - set(Options.__annotations__)):
        raise InputError(
            f"there is no option {unknown[0]!r}", remedy=f"the options are {', '.join(Options.__annotations__)}"
        )
    for number, problem in enumerate(problems):
        if not problem.strip():
            which = "the problem" if len(problems) == 1 else f"problem {number}"
            raise InputError(f"{which} is empty", remedy="ask something, such as 'What is 3 times 4?'")
    params, voter, allocator = _params(options), find_voter(options.get("voter", MAJORITY)), options.get("allocator")
    scorer = options.get("scorer")
    if voter.reads == "score" and scorer is None:
        raise InputError(
            f"the voter {voter.name!r} reads scores, and there is nobody to give them",
            remedy="pass a scorer (--verifier on the command line), or the voter 'certainty', which needs none",
        )
    if not problems:
        return iter(())
    if isinstance(model, LLM):
        if given := {"device", "dtype"} & set(options):
            raise InputError(
                f"{min(given)} is given beside an LLM, which has its own", remedy="leave it out, or name a model"
            )
        loading = ""
        llm, prompts = model, _prompts(model.loaded, problems, model.plan.max_len)
    else:
        loaded = open_model(model, options.get("device", "cpu"), options.get("dtype"))
        awaited = compiles_first(loaded.model, PAGE)
        llm, prompts = _engine(loaded, problems, params, isinstance(scorer, Verifier))
        # Where it cannot be compiled it is still awaited.
        compiled = awaited and not compiles_first(loaded.model, PAGE)
        loading = f"loading the model{' and compiling its step for this machine, once,' if compiled else ''}"
    calibration = options.get("calibration") or of_folder(llm.loaded.path)
    grader = None if scorer is None else Grader(scorer)
    if grader is not None:
        grader.warm(problems[0], prompts[0])
    play = Play(
        Live(llm),
        problems,
        prompts,
        params,
        voter=voter,
        stop_rule=options.get("stop_rule", unbeatable),
        allocator=UNIFORM if allocator is None else find_allocator(allocator, calibration),
        grader=grader,
        checker=options.get("checker"),
        calibration=calibration,
    )
    return play.events(started, seconds, loading)


def require_seconds(seconds: float) -> None:
    """Refuse a budget that is none. Errors: InputError."""
    if not seconds > 0:
        raise InputError(f"seconds is {seconds}, a budget must be a positive number", remedy="give 5, for example")


def _params(options: Options) -> SamplingParams:
    n, temperature = options.get("n", 64), options.get("temperature", 1.0)
    params = SamplingParams(n, temperature, max_tokens=options.get("max_tokens", 512), seed=options.get("seed", 0))
    return replace(params, n=1) if params.greedy else params


def open_model(model: str | Path, device: str = "cpu", dtype: str | None = None) -> Loaded:
    """A model by name on ``device``, in fp32 on a CPU and bf16 on a GPU unless told otherwise. Errors: as load_as."""
    return load_as(model, dtype or ("fp32" if device == "cpu" else "bf16"), device)


def _engine(
    loaded: Loaded, problems: Sequence[str], params: SamplingParams, keep_hidden: bool
) -> tuple[LLM, list[tuple[int, ...]]]:
    """The engine, made no larger than these problems need, and their prompts."""
    limit = loaded.spec.max_positions if loaded.spec.n_attention else None
    prompts = _prompts(loaded, problems, limit)
    longest = max(map(len, prompts)) + params.max_tokens
    rows = most_rows(loaded, params.n * len(problems))
    return LLM(loaded, rows, longest if limit is None else min(longest, limit), keep_hidden=keep_hidden), prompts


def most_rows(loaded: Loaded, chains: int) -> int:
    """Rows of an engine for so many chains, no more than pay where the model lies."""
    return max(1, min(chains, MAX_BATCH[loaded.model.head_weight.device.type]))


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
