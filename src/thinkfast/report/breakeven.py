"""From where on a student is cheaper than its teacher: predicted from one short measurement, and measured.

A step's time as a function of context is a `Curve` of measured points, or a `Model`: the measured step at a short
context plus what the roofline adds for a longer one, which is KV bytes over bandwidth and nothing else. Two answers
follow: the context from which a single step is cheaper, and the chain length from which a whole chain is, prefill
included; the latter is what crosses in a plot of tokens per second over new tokens.

Legend: c context tokens, n new tokens of a chain, p prompt tokens.

Usage: ``break_even(teacher, student, batch=64, prompt=64, new=512, sizes=sizes, machine=machine)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thinkfast.models.spec import ModelSpec
from thinkfast.report.roofline import ItemSizes, Machine, decode_step

Floats = NDArray[np.float64]
StepTime = Callable[[Floats], Floats]
"""Seconds of a step at contexts [any shape]."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Measured seconds of a step at increasing contexts; between them linear, beyond them as at the last one."""

    context: tuple[float, ...]
    seconds: tuple[float, ...]

    def __call__(self, context: Floats) -> Floats:
        return np.interp(context, self.context, self.seconds)

    @property
    def slope(self) -> float:
        """Seconds that one more context token a row adds, by least squares; 0 for a single point."""
        if len(self.context) < 2:
            return 0.0
        return float(np.polyfit(self.context, self.seconds, 1)[0])


@dataclass(frozen=True, slots=True)
class Model:
    """The measured step at ``context`` and the roofline's growth from there."""

    spec: ModelSpec
    batch: int
    sizes: ItemSizes
    machine: Machine
    context: float
    seconds: float

    def _kv(self, context: float) -> float:
        return decode_step(self.spec, self.batch, context, self.sizes).seconds(self.machine, "kv")

    def __call__(self, context: Floats) -> Floats:
        if not self.spec.n_attention:
            return np.full(context.shape, self.seconds)
        # The roofline bends only where the working set leaves a cache, so few points describe it.
        knots = np.unique(np.geomspace(1.0, max(2.0, float(context.max())), 64))
        grown = np.array([self._kv(knot) for knot in knots]) - self._kv(self.context)
        return self.seconds + np.interp(context, knots, grown)


@dataclass(frozen=True, slots=True)
class Bound:
    """The roofline of a whole step."""

    spec: ModelSpec
    batch: int
    sizes: ItemSizes
    machine: Machine

    def __call__(self, context: Floats) -> Floats:
        steps = (decode_step(self.spec, self.batch, float(c), self.sizes) for c in context)
        return np.array([step.seconds(self.machine) for step in steps])


def step_break_even(teacher: StepTime, student: StepTime, contexts: Sequence[float]) -> float | None:
    """The context from which on the student's step is cheaper, up to the last of ``contexts`` (increasing).

    The first of ``contexts`` where it is cheaper everywhere; None where it is not cheaper at the end.
    """
    c = np.asarray(contexts, dtype=np.float64)
    lead = teacher(c) - student(c)
    if not lead[-1] > 0:
        return None
    behind = np.flatnonzero(lead <= 0)
    if not len(behind):
        return float(c[0])
    i = int(behind[-1])
    return float(c[i] + (c[i + 1] - c[i]) * -lead[i] / (lead[i + 1] - lead[i]))


@dataclass(frozen=True, slots=True)
class Run:
    """A chain's cost: seconds until its first token, then a step a token."""

    first: float
    step: StepTime


def chain_break_even(teacher: Run, student: Run, prompt: int, longest: int) -> int | None:
    """The number of new tokens, at most ``longest``, from which on a student's whole chains are cheaper."""
    context = prompt + np.arange(1, longest, dtype=np.float64)
    total = [run.first + np.concatenate(([0.0], np.cumsum(run.step(context)))) for run in (teacher, student)]
    lead = total[0] - total[1]
    if not lead[-1] > 0:
        return None
    behind = np.flatnonzero(lead <= 0)
    return int(behind[-1]) + 2 if len(behind) else 1


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one model at one batch: seconds until the first token, and a step against context."""

    spec: ModelSpec
    first: float
    curve: Curve


def break_even(
    teacher: Measured, student: Measured, batch: int, prompt: int, new: int, sizes: ItemSizes, machine: Machine
) -> dict[str, float | None]:
    """Where ``student`` overtakes ``teacher``: `*_tokens` of chains after ``prompt``, `*_context` of single steps.

    predicted: each model's first measured point and the roofline's growth, up to the teacher's longest context.
    measured: the curves, and chains of at most ``new`` tokens. bound: the roofline alone. None: not within reach.
    """
    horizon = max(prompt + new, teacher.spec.max_positions)
    pair = (teacher, student)
    predicted = [Model(m.spec, batch, sizes, machine, m.curve.context[0], m.curve.seconds[0]) for m in pair]
    bounds = [Bound(m.spec, batch, sizes, machine) for m in pair]
    start = teacher.curve.context[0]
    far = np.geomspace(start, max(horizon, 2 * start), 64).tolist()
    return {
        "predicted_tokens": chain_break_even(
            Run(teacher.first, predicted[0]), Run(student.first, predicted[1]), prompt, horizon - prompt
        ),
        "measured_tokens": chain_break_even(
            Run(teacher.first, teacher.curve), Run(student.first, student.curve), prompt, new
        ),
        "predicted_context": step_break_even(predicted[0], predicted[1], far),
        "measured_context": step_break_even(teacher.curve, student.curve, teacher.curve.context),
        "bound_context": step_break_even(bounds[0], bounds[1], [1.0, *far]),
    }
