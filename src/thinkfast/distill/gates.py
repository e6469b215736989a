"""The figures that let a stage pass: held-out error or agreement, and accuracy of generated answers.

A likelihood gap of 0.2 points once hid a generation gap of 20.8 (FACTS.md, section 4), so the last stage is judged by
generating: greedy answers of student and teacher to the same held-out problems, through the real engine.

Usage: ``check_gate(stage, figure)`` raises GateError with the figure where the gate is missed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from thinkfast.data.corpus import Corpus
from thinkfast.data.problems import Problem
from thinkfast.distill.recipe import StageConfig
from thinkfast.distill.stages import Stage
from thinkfast.errors import GateError
from thinkfast.models.loading import Loaded

HELD_OUT_BATCHES = 4


@dataclass(frozen=True, slots=True)
class GateResult:
    """One stage's held-out figure and the bound it had to meet (None: no bound)."""

    stage: str
    figure: str
    value: float
    bound: float | None
    higher_is_better: bool

    @property
    def passed(self) -> bool:
        """Whether the figure meets its bound; one that is not a number never does."""
        if math.isnan(self.value):
            return False
        if self.bound is None:
            return True
        return self.value >= self.bound if self.higher_is_better else self.value <= self.bound

    def __str__(self) -> str:
        sign = ">=" if self.higher_is_better else "<="
        bound = "" if self.bound is None else f" (gate {sign} {self.bound:g})"
        return f"{self.stage}: {self.figure} {self.value:.4f}{bound}"


def held_out_figure(stage: Stage, held_out: Corpus, device: torch.device) -> float:
    """Mean of the stage's figure over the first held-out batches."""
    count = min(HELD_OUT_BATCHES, held_out.batches_per_epoch)
    return sum(stage.measure(held_out.batch(i).to(device)) for i in range(count)) / count


def generated_accuracy(loaded: Loaded, problems: list[Problem], max_tokens: int = 512) -> float:
    """Share of ``problems`` that the model answers right when decoding greedily."""
    from thinkfast.engine.llm import LLM
    from thinkfast.engine.request import SamplingParams
    from thinkfast.judge.answer import judge

    llm = LLM(loaded, max_batch=min(64, len(problems)))
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    chains = llm.generate([p.question for p in problems], params)
    right = [judge(row[0].text, p.answer or "").correct is True for row, p in zip(chains, problems, strict=True)]
    return sum(right) / len(right)


def check_gate(config: StageConfig, result: GateResult) -> GateResult:
    """Return ``result`` where it passes. Errors: GateError with the figure and what to try."""
    if not result.passed:
        raise GateError(
            f"stage {config.name} failed its gate: {result}",
            remedy=f"give stage {config.name} more tokens (now {config.tokens:g}) or another lr (now {config.lr:g}), "
            "in a new folder",
        )
    return result
