"""More figures of an evaluation: against tokens, the Pareto front, confidence against accuracy, live against replay.

Usage: ``with theme(): figure = pareto(summary); save_png(figure, path)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from thinkfast.judge.confidence import calibration_error, of_folder
from thinkfast.judge.tally import Standing
from thinkfast.judge.voters import MAJORITY
from thinkfast.report.calibrate import leaders
from thinkfast.report.canvas import FAINT, INK, MUTED, heading, log_ticks, panels, percent_axis
from thinkfast.report.duels import METRICS
from thinkfast.report.live import Agreement, replayed
from thinkfast.report.replay import Recording
from thinkfast.report.samples import Row
from thinkfast.report.summary import Summary
from thinkfast.report.views import View
from thinkfast.report.wording import NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 8
GRID = 9  # budgets at which the replay's curve is drawn
CURVE_ORDERS = 3


def against_tokens(summary: Summary) -> Figure | None:
    """pass@k and maj@k over the tokens that k chains have on average; None where no system has complete samples."""
    if not any(summary.samples["coverage"]):
        return None
    figure, axes = panels(1, 2, (12, 4.4))
    low, high = np.inf, 0.0
    for at, metric in enumerate(METRICS):
        heading(axes[at], f"{NAMES[metric].capitalize()} against tokens", "mean over random subsets of samples")
        percent_axis(axes[at])
        for row in summary.table:
            curve = summary.samples[metric].get(row.view.name)
            if curve is None:
                continue
            x = np.array(curve.k) * row.mean_tokens
            axes[at].fill_between(x, curve.low, curve.high, color=row.view.colour, alpha=0.14, linewidth=0)
            axes[at].plot(x, curve.value, marker="o", markersize=4, color=row.view.colour, label=row.view.label)
            low, high = min(low, float(x[0])), max(high, float(x[-1]))
    for each in axes:
        each.set_xscale("log")
        each.set_xlim(low * 0.9, high * 1.1)
        log_ticks(each.xaxis, low * 0.9, high * 1.1)
        each.set_xlabel("tokens per problem (log)")
    axes[0].legend(loc="lower right")
    return figure


def pareto(summary: Summary) -> Figure | None:
    """Majority accuracy over seconds, all systems in one, with the front that no system beats drawn above them."""
    curves = summary.curves["majority"]
    if not curves:
        return None
    figure, (axes,) = panels(1, 1, (8.4, 4.4))
    heading(axes, "Pareto front", "the best majority accuracy that any system reaches by each second")
    percent_axis(axes)
    start = min(float(curve.seconds[0]) for curve in curves.values())
    end = max(float(curve.seconds[-1]) for curve in curves.values())
    end = end if end > start else 2 * start
    grid = np.geomspace(start, end, 200)
    table = np.zeros((len(summary.views), len(grid)))
    for at, view in enumerate(summary.views):
        if (curve := curves.get(view.name)) is None:
            continue
        place = np.searchsorted(curve.seconds, grid, side="right") - 1
        table[at] = np.where(place >= 0, curve.value[np.maximum(place, 0)], 0.0)
        axes.plot(grid, table[at], color=view.colour, alpha=0.45, linewidth=1.4, label=view.label)
    best, owner = np.maximum.accumulate(table.max(0)), table.argmax(0)
    for at, view in enumerate(summary.views):
        axes.plot(grid, np.where(owner == at, best, np.nan), color=view.colour, linewidth=4, solid_capstyle="butt")
    axes.set_xscale("log")
    axes.set_xlim(start, end)
    log_ticks(axes.xaxis, start, end)
    axes.set_xlabel(f"seconds for all {summary.problems} problems (log)")
    axes.legend(loc="lower right")
    return figure


def calibration(views: Sequence[View]) -> Figure | None:
    """Confidence against accuracy, and the bare share of the votes beside it; None where no model has a calibration."""
    shown = [(view, found) for view in views if (found := _confidences(view)) is not None]
    if not shown:
        return None
    figure, axes = panels(1, 2, (10.4, 4.4))
    for at, title in enumerate(("Confidence", "Bare share of the votes")):
        heading(axes[at], title, "votes of 1 to all samples; dots: bins of equally many votes")
        percent_axis(axes[at])
        axes[at].plot([0, 1], [0, 1], color=FAINT, linewidth=2, zorder=0)
        for view, (confidence, share, right) in shown:
            x = confidence if at == 0 else share
            parts = [part for part in np.array_split(np.argsort(x, kind="stable"), BINS) if len(part)]
            label = f"{view.label}, error {100 * calibration_error(x, right):.1f} points"
            axes[at].plot(
                [x[p].mean() for p in parts], [right[p].mean() for p in parts], "o-", color=view.colour, label=label
            )
        axes[at].set_xlim(0, 1)
        axes[at].set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0], ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"])
        axes[at].set_xlabel("what is claimed" if at == 0 else "share")
        axes[at].set_ylabel("how often it was right")
        axes[at].legend(loc="upper left")
    return figure


def _confidences(view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    from thinkfast.errors import ModelError
    from thinkfast.models.loading import find_model

    try:
        found = of_folder(find_model(view.record.model))
    except ModelError:
        return None  # the log may be of another machine
    if found is None:
        return None
    problems: dict[str, list[Row]] = {}
    for row in view.rows:
        problems.setdefault(row.problem, []).append(row)
    votes = leaders(list(problems.values()), MAJORITY)
    if not votes:
        return None
    claimed = [found.confidence(Standing("", "", v.count, v.share, 0, v.count), v.total) or 0.0 for v in votes]
    return np.array(claimed), np.array([v.share for v in votes]), np.array([v.right for v in votes])


def live_and_replay(
    agreements: Sequence[Agreement], logs: Mapping[str, Recording], views: Sequence[View]
) -> Figure | None:
    """Accuracy over seconds a problem: the replay as a line, live runs as dots; None without a live run."""
    if not agreements:
        return None
    figure, (axes,) = panels(1, 1, (8.4, 4.4))
    heading(axes, "Answered live, and replayed from the log", "majority accuracy, each problem by itself")
    percent_axis(axes)
    budgets = [each.budget for each in agreements]
    low, high = min(budgets) / 1.6, max(budgets) * 1.6
    for view in views:
        mine = [each for each in agreements if each.system == view.name]
        if not mine:
            continue
        grid = np.geomspace(low, high, GRID)
        line = [float(replayed(logs[view.name], float(budget), CURVE_ORDERS).mean()) for budget in grid]
        axes.plot(grid, line, color=view.colour, label=f"{view.label}, replayed")
        x, y = [each.budget for each in mine], [each.live.value for each in mine]
        spread = [[e.live.value - e.live.low for e in mine], [e.live.high - e.live.value for e in mine]]
        axes.errorbar(x, y, spread, fmt="o", color=view.colour, ecolor=MUTED, capsize=3, label=f"{view.label}, live")
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    log_ticks(axes.xaxis, low, high)
    axes.set_xlabel("seconds for each problem (log)")
    axes.legend(loc="lower right", labelcolor=INK)
    return figure
