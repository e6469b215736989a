"""What a bench runs: its config, the cases of its grid, and the ratios it is held to.

Usage: ``BenchConfig(models=("tiny", "mine=runs/d/model"), batches=(64,), new_tokens=(256, 512)).validate()``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from thinkfast.errors import InputError
from thinkfast.report.evalconfig import system_list

DEFAULT_MODELS = ("tiny", "tiny-hybrid", "tiny-pure")
Prompts = Literal["distinct", "one"]
State = Literal["fp32", "bf16", "fp8"]
STATES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
RatioKind = Literal["engine_vs_transformers", "student_vs_teacher"]
# On a CPU, fp32, at this batch; a student at this many new tokens, a teacher at any.
WANTED: dict[RatioKind, float] = {"engine_vs_transformers": 3.0, "student_vs_teacher": 1.5}
WANTED_BATCH, WANTED_NEW = 64, 512


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of the grid: ``batch`` chains of ``new`` forced tokens, each after its own prompt of ``prompt`` tokens,
    or with ``shared`` all after one, as when a problem is sampled many times. state: of SSM states, None for the
    engine's own choice.
    """

    batch: int
    prompt: int
    new: int
    shared: bool = False
    state: State | None = None

    def __str__(self) -> str:
        prompt = f"one prompt of {self.prompt}" if self.shared else f"prompts of {self.prompt}"
        state = "" if self.state is None else f", states in {self.state}"
        return f"batch {self.batch}, {prompt}, {self.new} new tokens{state}"

    @property
    def context(self) -> float:
        """Context tokens a row that a decode step has to read, on average over the steps; a shared prompt once."""
        return self.prompt / (self.batch if self.shared else 1) + (self.new + 1) / 2


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """models: names or folders, each optionally `label=model`; the first Transformer is the teacher of the rest.

    batches, prompts, prompt_tokens, new_tokens, states: the grid; no states means the engine's own choice. repeats:
    rounds of all contestants in turn; ratios are medians over rounds. against: the engine to compare with, at the first
    of new_tokens. curve: also measure step time against context, at the largest batch, and break-even.
    """

    models: tuple[str, ...] = DEFAULT_MODELS
    batches: tuple[int, ...] = (64,)
    prompts: tuple[Prompts, ...] = ("distinct", "one")
    prompt_tokens: tuple[int, ...] = (64,)
    new_tokens: tuple[int, ...] = (256, 512)
    states: tuple[State, ...] = ()
    repeats: int = 3
    against: Literal["transformers", "none"] = "transformers"
    curve: bool = True
    seed: int = 0
    dtype: Literal["fp32", "bf16", "fp8"] = "fp32"
    device: str = "cpu"

    def validate(self) -> None:
        """Refuse numbers out of range. Errors: InputError."""
        system_list(self.models)
        if self.dtype == "fp8" and self.against != "none":
            raise InputError("transformers has no weights in fp8 to run against", remedy="pass --against none")
        if bad := [kind for kind in self.prompts if kind not in ("distinct", "one")]:
            raise InputError(f"prompts is {bad[0]!r}", remedy="pass --prompts distinct, --prompts one, or both")
        whole = [("batch", self.batches), ("new", self.new_tokens)]
        if unknown := [state for state in self.states if state not in STATES]:
            raise InputError(f"state is {unknown[0]!r}", remedy=f"pass --state {' or '.join(STATES)}")
        if self.states and self.device == "cpu":
            raise InputError("a CPU keeps states in fp32", remedy="leave --state out, or pass --device cuda")
        whole += [("prompt", self.prompt_tokens), ("repeats", (self.repeats,)), ("prompts", (len(self.prompts),))]
        for name, values in whole:
            if not values:
                raise InputError(f"no --{name} is given", remedy=f"pass --{name} of at least 1")
            if min(values) < 1:
                raise InputError(f"{name} is {min(values)}", remedy=f"pass --{name} of at least 1")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}", remedy="pass a whole number from 0 to 2^63 - 1")
        if self.against not in ("transformers", "none"):
            raise InputError(f"cannot bench against {self.against!r}", remedy="pass --against transformers or none")

    def cases(self) -> Iterator[Case]:
        """The grid, each combination once; a batch of one has its own prompt either way."""
        for batch in dict.fromkeys(self.batches):
            for prompts in dict.fromkeys(self.prompts):
                if batch > 1 or self.prompts == ("one",) or prompts == "distinct":
                    grid = itertools.product(self.prompt_tokens, self.new_tokens, self.states or (None,))
                    for prompt, new, state in dict.fromkeys(grid):
                        yield Case(batch, prompt, new, prompts == "one", state)

    @property
    def longest(self) -> int:
        """Tokens of the longest chain, its prompt included."""
        return max(self.prompt_tokens) + max(self.new_tokens)

    @property
    def widest_state(self) -> torch.dtype | None:
        """What the states that take most are kept in; None for the engine's own choice."""
        return max((STATES[state] for state in self.states), key=lambda dtype: dtype.itemsize, default=None)

    def wanted(self, kind: RatioKind, case: Case) -> float | None:
        """The ratio this case is held to; None where no promise was made."""
        promised = self.device == "cpu" and self.dtype == "fp32" and case.batch == WANTED_BATCH and not case.shared
        if not promised or (kind == "student_vs_teacher" and case.new != WANTED_NEW):
            return None
        return WANTED[kind]


QUICK = BenchConfig(batches=(16,), prompt_tokens=(16,), new_tokens=(32, 64), repeats=1)
"""Every kind of measurement, too short to trust."""
