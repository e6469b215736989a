"""What an evaluation runs: its config and the systems it names.

Usage: ``EvalConfig(models=("tiny", "mine=runs/d/model"), problems="tiny_test", limit=20, n=8, seconds=60)``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from thinkfast.data.prompts import Style
from thinkfast.engine.request import SamplingParams
from thinkfast.errors import InputError
from thinkfast.judge.voters import find_voter

MARKER = "eval.yaml"

_LABELLED = re.compile(r"([\w][\w .+-]*)=(.+)")


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """An evaluation: every model answers the same problems under the same caps.

    models: names or folders, each optionally `label=model`. problems, limit, problem_seed: as for `load_problems`.
    prompt: how the question is put (`data.prompts`), "auto" for what the model's chat template calls for.
    n: samples per problem, None for as many as the seconds allow. seconds: budget of each model for the whole problem
    set, None for as long as n samples take. unit: most samples of every problem that are made, and kept, together: a
    kill loses at most one unit, a larger one fills batches better; of many problems fewer are taken. budgets: seconds
    a problem at which each is also solved live, by itself. voters: whose accuracy the report shows beside coverage. The
    rest is as for `SamplingParams` and `LLM`.
    """

    models: tuple[str, ...]
    problems: str = "tiny_test"
    limit: int | None = None
    problem_seed: int | None = None
    prompt: Style = "auto"
    n: int | None = 8
    seconds: float | None = None
    unit: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 512
    max_batch: int = 64
    seed: int = 0
    dtype: Literal["fp32", "bf16", "fp8"] = "fp32"
    device: str = "cpu"
    budgets: tuple[float, ...] = ()
    voters: tuple[str, ...] = ("majority", "certainty")

    def validate(self) -> None:
        """Refuse numbers out of range. Errors: InputError."""
        system_list(self.models)
        if self.n is None and self.seconds is None:
            raise InputError("neither n nor seconds is given", remedy="cap the run: -n 8, --seconds 60, or both")
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds > 0):
            raise InputError(f"seconds is {self.seconds}, a budget must be positive", remedy="pass --seconds 60")
        for name, value in (("n", self.n), ("unit", self.unit), ("max_batch", self.max_batch), ("limit", self.limit)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}", remedy=f"pass {name} of at least 1")
        for budget in self.budgets:
            if not (math.isfinite(budget) and budget > 0):
                raise InputError(f"a budget of {budget} seconds", remedy="give positive budgets: budgets=[0.5,1,2]")
        for voter in self.voters:
            find_voter(voter)
        SamplingParams(1, self.temperature, self.top_p, self.top_k, self.min_p, self.max_tokens)


@dataclass(frozen=True, slots=True)
class System:
    """A model under the name that log and report give it."""

    name: str
    model: str


def system_list(models: Sequence[str]) -> list[System]:
    """The systems that `models` name: "tiny", a folder, or "label=either".

    A folder without a label goes by its own name, or its parent's where that is "model", as a distillation writes it.
    Errors: InputError for an empty list or two systems of one name.
    """
    if not models:
        raise InputError("no model to evaluate", remedy="name one: --model tiny")
    systems = []
    for text in models:
        labelled = None if Path(text).exists() else _LABELLED.fullmatch(text)
        path = Path(text)
        name = path.parent.name if path.name == "model" and path.parent.name else path.name
        systems.append(System(labelled[1], labelled[2]) if labelled else System(name or text, text))
    names = [system.name for system in systems]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(
            f"two systems are called {twice!r}", remedy=f"label them: --model {twice}=PATH --model other=PATH"
        )
    return systems
