"""What a run of training or distillation does, as one frozen object read from ``recipes/*.yaml``.

Usage: ``recipe = load_config(Recipe, "recipes/tiny-hybrid.yaml", ["stages.0.tokens=1e6"])``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

StageName = Literal["pretrain", "orient", "align", "imitate", "sft"]
LossName = Literal["forward", "reverse", "jsd", "ce"]


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Training text: a problem set, how many of its examples, and of which difficulties (procedural sets only).

    ``bucket`` sorts examples by length within windows of that many, which saves padding in the sequence mixers and
    costs gradient noise, because a batch then holds one difficulty.
    """

    problems: str = "tiny_train"
    held_out: str = "tiny_val"
    pool: int = 20_000
    difficulties: tuple[int, ...] = ()
    bucket: int = 0


@dataclass(frozen=True, slots=True)
class StageConfig:
    """One stage: its tokens, its optimiser and its gate.

    ``gate`` is the figure the stage must reach on held-out problems: for orient and align a relative error not to
    exceed, for imitate a next-token agreement with the teacher to reach, for sft and pretrain a greedy accuracy on
    generated answers to reach (for sft as a share of the teacher's). None lets the stage pass whatever it measures.
    ``hidden`` weighs the residual-stream term of imitate. ``train`` is ``mixers`` (only what replaced attention) or
    ``all``. ``vector_lr`` multiplies the learning rate of everything that is no matrix (norms, biases, decay rates):
    above 1 where a stage is too short for them to arrive at the rate that suits its matrices.
    """

    name: StageName
    tokens: float
    lr: float
    batch_tokens: int = 8192
    loss: LossName = "forward"
    train: Literal["mixers", "all"] = "all"
    gate: float | None = None
    weight_decay: float = 0.0
    warmup: float = 0.1
    decay: float = 0.5
    clip: float = 1.0
    optimiser: Literal["adamw", "muon"] = "adamw"
    hidden: float = 0.0
    vector_lr: float = 1.0

    def validate(self) -> None:
        """Refuse figures out of range."""
        if not (1 <= self.batch_tokens <= self.tokens < math.inf):
            raise ValueError(
                f"tokens ({self.tokens}) must be at least batch_tokens ({self.batch_tokens}), both positive"
            )
        if not 0 < self.lr < 1:
            raise ValueError(f"lr is {self.lr}, it must lie between 0 and 1")
        if not (0 <= self.warmup and 0 <= self.decay and self.warmup + self.decay <= 1):
            raise ValueError("warmup and decay are shares of the steps: at least 0, together at most 1")
        if not (0 <= self.weight_decay < math.inf and 0 < self.clip):
            raise ValueError(f"weight_decay ({self.weight_decay}) must be at least 0, clip ({self.clip}) above 0")
        if not (0 < self.vector_lr < math.inf and self.lr * self.vector_lr < 1):
            raise ValueError(f"vector_lr is {self.vector_lr}, it must be above 0, and lr times it below 1")
        if not 0 <= self.hidden < math.inf:
            raise ValueError(f"hidden is {self.hidden}, a weight is at least 0")

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return max(1, round(self.tokens / self.batch_tokens))

    def lr_at(self, step: int) -> float:
        """Warm-up, stable, linear decay to 5 % (WSD, arXiv 2404.06395)."""
        done, total = step + 1, self.steps
        warm = max(1, round(self.warmup * total))
        if done <= warm:
            return self.lr * done / warm
        left, tail = total - step, max(1, round(self.decay * total))
        return self.lr * max(0.05, min(1.0, left / tail))


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """Sizes of a teacher that is trained from nothing."""

    d_model: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 6
    d_ff: int = 512
    rope_theta: float = 10000.0
    max_positions: int = 4096

    def validate(self) -> None:
        """Refuse sizes that do not divide."""
        if self.heads < 1 or self.kv_heads < 1 or self.d_model % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError(
                f"d_model ({self.d_model}) must be an even multiple of heads ({self.heads}), and heads a multiple of "
                f"kv_heads ({self.kv_heads})"
            )


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole run. ``keep`` lists the layers that stay attention: none gives the pure student.

    ``parts`` computes a batch in that many parts whose gradients are added: side by side, a core each, on a CPU; one
    after another on a GPU, where it saves memory. What is learnt does not depend on how many cores there are.
    """

    name: str
    stages: tuple[StageConfig, ...]
    teacher: str = "tiny"
    keep: tuple[int, ...] = ()
    d_state: int | None = None
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    new_teacher: TeacherConfig | None = None
    eval_problems: int = 48
    save_every: float = 10.0
    bf16: bool = False
    parts: int = 1
    student_dtype: Literal["fp32", "bf16"] = "fp32"

    def validate(self) -> None:
        """Refuse a run without stages, or with a stage that lacks a teacher or makes one it has no sizes for."""
        if not self.stages:
            raise ValueError("a recipe needs at least one stage")
        for name, count in (("eval_problems", self.eval_problems), ("data.pool", self.data.pool)):
            if count < 1:
                raise ValueError(f"{name} is {count}, it must be at least 1")
        if self.parts < 1:
            raise ValueError(f"parts is {self.parts}, a batch has at least 1")
        if self.new_teacher is None and any(s.name == "pretrain" for s in self.stages):
            raise ValueError("the pretrain stage makes a new teacher: give new_teacher its sizes")
        if self.new_teacher is not None and (bad := [s.name for s in self.stages if s.name not in ("pretrain", "sft")]):
            raise ValueError(f"a new teacher has nobody to learn from: leave out stage {bad[0]} or new_teacher")
