"""Who leads at which budget: systems compared on the same problems under the same seconds.

Shapes: P problems, B budgets.

Why: a curve above another is not yet a win. Every comparison here is paired over problems, and a lead counts as clear
only where the bootstrap interval of the difference excludes zero. Budgets end where the first system's log ends, as
what a system would have done with seconds that it was not given is unknown.

Usage: ``budgets = choose_budgets(views, 0.1); cells = winners(accuracy_at(views, budgets), budgets)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from thinkfast.report.curves import Floats, coverage_by_second, majority_by_second
from thinkfast.report.intervals import bootstrap_columns, paired
from thinkfast.report.views import View

Metric = Literal["coverage", "majority"]
METRICS: tuple[Metric, ...] = ("coverage", "majority")
RESAMPLES = 2000
MOST_BUDGETS = 9


@dataclass(frozen=True, slots=True)
class Scores:
    """One system's accuracy at the budgets: per_problem [P, B]; value, low, high [B] with intervals over problems."""

    per_problem: Floats
    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, slots=True)
class Duel:
    """a against b at one budget: the difference a - b with its interval; clear where that excludes zero.

    The interval is None where one problem is all there is.
    """

    a: str
    b: str
    metric: Metric
    seconds: float
    a_value: float
    b_value: float
    low: float | None
    high: float | None

    @property
    def lead(self) -> float:
        """a's accuracy less b's."""
        return self.a_value - self.b_value

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


Accuracies = Mapping[Metric, Mapping[str, Scores]]


def choose_budgets(views: Sequence[View], start: float) -> list[float]:
    """Round numbers of seconds (1, 2, 5, 10, ...) from `start` on at which all systems can be compared, and the last
    common second. Empty where a system has no time at all.
    """
    end = min(view.record.wall_seconds for view in views)
    if end <= 0:
        return []
    start = min(start, end)
    steps = [m * 10.0**e for e in range(-3, 7) for m in (1, 2, 5)]
    inside = [step for step in steps if start <= step < 0.7 * end]
    if len(inside) < 3:
        inside = [float(f"{t:.2g}") for t in np.geomspace(start, end, 6)[1:-1]]
        inside = sorted({t for t in inside if start <= t < 0.9 * end})
    thin = inside[-(MOST_BUDGETS - 1) :]
    return [*thin, float(end)]


def accuracy_at(views: Sequence[View], seconds: Sequence[float]) -> Accuracies:
    """Coverage and majority accuracy of every system at each of `seconds` [B], all resampled by the same draws."""
    grid = np.asarray(seconds, np.float64)
    return {
        "coverage": {view.name: _scores(coverage_by_second(view.chains, grid)) for view in views},
        "majority": {view.name: _scores(majority_by_second(view.chains, grid)) for view in views},
    }


def _scores(per_problem: Floats) -> Scores:
    return Scores(per_problem, *bootstrap_columns(per_problem, resamples=RESAMPLES))


def duel(scores: Accuracies, metric: Metric, a: str, b: str, at: int, seconds: float) -> Duel:
    """System `a` against `b` at budget number `at`."""
    one, other = scores[metric][a], scores[metric][b]
    low: float | None = None
    high: float | None = None
    if len(one.per_problem) > 1:
        difference = paired(one.per_problem[:, at], other.per_problem[:, at], resamples=RESAMPLES)
        low, high = difference.low, difference.high
    return Duel(a, b, metric, seconds, float(one.value[at]), float(other.value[at]), low, high)


def winners(scores: Accuracies, budgets: Sequence[float]) -> list[dict[Metric, Duel | None]]:
    """At each budget, per metric, the leader against the runner-up; None where nobody has a right answer yet.

    Of equal systems the one named first leads, by nothing. With a single system there is no duel.
    """
    table: list[dict[Metric, Duel | None]] = []
    for at, seconds in enumerate(budgets):
        cells: dict[Metric, Duel | None] = {}
        for metric in METRICS:
            values = {name: float(score.value[at]) for name, score in scores[metric].items()}
            ranked = sorted(values, key=lambda name: -values[name])
            lead = len(ranked) > 1 and values[ranked[0]] > 0
            cells[metric] = duel(scores, metric, ranked[0], ranked[1], at, seconds) if lead else None
        table.append(cells)
    return table


def against(scores: Accuracies, metric: Metric, student: str, teacher: str, budgets: Sequence[float]) -> list[Duel]:
    """A student against its teacher at every budget."""
    return [duel(scores, metric, student, teacher, at, seconds) for at, seconds in enumerate(budgets)]
