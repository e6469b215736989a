"""Everything a report shows, computed once: table, curves, winners, headline.

Shapes: P problems, G points of a curve, B budgets.

Why apart from drawing: HTML, PNG, Markdown, JSON and the terminal must not disagree.

Usage: ``summary = summarise(results, rows); summary.table[0].mean.value``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thinkfast.judge.voters import VOTERS
from thinkfast.report.curves import Curve, Floats, coverage_curve, vote_curve
from thinkfast.report.duels import RESAMPLES, Accuracies, Duel, Metric, accuracy_at, choose_budgets, winners
from thinkfast.report.intervals import Estimate, bootstrap, bootstrap_columns
from thinkfast.report.metrics import coverage_at_k, majority_at_k
from thinkfast.report.samples import Row
from thinkfast.report.views import View, build_views
from thinkfast.report.wording import Headline, say

CURVE_POINTS = 80
SUBSETS = 400  # random subsets per problem and k; over all problems together that is plenty
COLUMNS = 4  # budgets shown in the table


@dataclass(frozen=True, slots=True)
class SampleCurve:
    """pass@k or maj@k: k, value, low, high all of one length."""

    k: tuple[int, ...]
    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, slots=True)
class TableRow:
    """One system in the final table. mean, majority, coverage: over `samples` samples of every problem, None where a
    budget ended before each problem had one. seconds: until those samples were there. mean_tokens: of a chain.
    """

    view: View
    samples: int
    mean: Estimate | None
    majority: Estimate | None
    coverage: Estimate | None
    seconds: float | None
    mean_tokens: float
    unknown_share: float
    answered: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The report's content; `budgets` [B] are seconds, `columns` the indices of those that the table shows."""

    views: tuple[View, ...]
    problems: int
    table: tuple[TableRow, ...]
    curves: Mapping[Metric, Mapping[str, Curve]]
    samples: Mapping[Metric, Mapping[str, SampleCurve]]
    budgets: tuple[float, ...]
    columns: tuple[int, ...]
    scores: Accuracies
    winners: tuple[Mapping[Metric, Duel | None], ...]
    headline: Headline


def summarise(results: Mapping[str, Any], rows: Sequence[Row]) -> Summary:
    """Compute the report. Errors: InputError where results and rows do not belong together."""
    views = tuple(build_views(results, rows))
    problems = len(results["eval"]["problems"])
    curves = _curves(views)
    firsts = [float(curve.seconds[0]) for curve in curves["coverage"].values()]
    budgets = tuple(choose_budgets(views, min(firsts))) if firsts else ()
    scores = accuracy_at(views, budgets) if budgets else {}
    return Summary(
        views=views,
        problems=problems,
        table=tuple(_table_row(view) for view in views),
        curves=curves,
        samples=_samples(views),
        budgets=budgets,
        columns=tuple(sorted({round(i) for i in np.linspace(0, len(budgets) - 1, min(COLUMNS, len(budgets)))})),
        scores=scores,
        winners=tuple(winners(scores, budgets)) if budgets else (),
        headline=say(views, scores, budgets, problems),
    )


def _table_row(view: View) -> TableRow:
    n, drawn = view.complete, view.drawn
    tokens = [row.tokens for row in view.rows]
    keyed = [row.key is not None for row in view.rows]
    return TableRow(
        view=view,
        samples=n,
        mean=bootstrap(coverage_at_k(drawn, 1)) if n else None,
        majority=bootstrap(majority_at_k(drawn, n)) if n else None,
        coverage=bootstrap(coverage_at_k(drawn, n)) if n else None,
        seconds=float(drawn.seconds.max()) if n else None,
        mean_tokens=float(np.mean(tokens)) if tokens else 0.0,
        unknown_share=view.chains.unknown_share,
        answered=float(np.mean(keyed)) if keyed else 0.0,
    )


def _curves(views: Sequence[View]) -> dict[Metric, dict[str, Curve]]:
    """Curves on a log grid, from the second at which anybody has something to show to the end of each own run."""
    curves: dict[Metric, dict[str, Curve]] = {"coverage": {}, "majority": {}}
    if not any(len(view.chains.seconds) for view in views):
        return curves
    begun = [at for view in views if (at := _begins(view)) is not None]
    firsts = [float(view.chains.seconds.min()) for view in views if len(view.chains.seconds)]
    start = max(min(begun or firsts), 1e-3)
    ends = np.array([view.record.wall_seconds for view in views])
    for view in views:
        end = view.record.wall_seconds
        grid = np.geomspace(start, end, CURVE_POINTS) if start < end else np.array([max(end, start)])
        # Also where others end: the curves are compared there, and must say what the tables say.
        grid = np.union1d(grid[:-1], ends[(ends > start) & (ends <= end)]) if start < end else grid
        curves["coverage"][view.name] = coverage_curve(view.chains, grid, resamples=RESAMPLES)
        curves["majority"][view.name] = vote_curve(view.chains, grid, VOTERS["majority"], resamples=RESAMPLES)
    return curves


def _begins(view: View) -> float | None:
    """When a system first covers a twentieth of the problems; None where it never does."""
    chains, right = view.chains, view.chains.right()
    owners, at = np.unique(chains.problem[right], return_index=True)  # chains are in the order of finishing
    rank = max(1, int(np.ceil(0.05 * chains.problems)))
    return float(np.sort(chains.seconds[right][at])[rank - 1]) if len(owners) >= rank else None


def _samples(views: Sequence[View]) -> dict[Metric, dict[str, SampleCurve]]:
    curves: dict[Metric, dict[str, SampleCurve]] = {"coverage": {}, "majority": {}}
    for view in views:
        if not view.complete:
            continue
        ks = sorted({*(2**e for e in range(view.complete.bit_length())), view.complete})
        cover = np.stack([coverage_at_k(view.drawn, k) for k in ks], axis=1)
        vote = np.stack([majority_at_k(view.drawn, k, exact=SUBSETS, draws=SUBSETS) for k in ks], axis=1)
        for metric, values in (("coverage", cover), ("majority", vote)):
            name: Metric = "coverage" if metric == "coverage" else "majority"
            curves[name][view.name] = SampleCurve(tuple(ks), *bootstrap_columns(values, resamples=RESAMPLES))
    return curves
