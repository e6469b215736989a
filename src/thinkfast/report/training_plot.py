"""The distillation figure: one panel per stage, one line per student, losses as logged.

Usage: ``with theme(): figure = distillation(results["distillation"], views)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from thinkfast.report.canvas import MUTED, heading, log_ticks, panels, plain
from thinkfast.report.curves import Floats
from thinkfast.report.views import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSSES = {
    "orient": "distance of mixer matrices",
    "align": "distance of block outputs",
    "imitate": "divergence from the teacher",
    "sft": "cross-entropy of answers",
    "pretrain": "cross-entropy of answers",
}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def distillation(runs: Mapping[str, Any], views: Sequence[View]) -> Figure | None:
    """Losses of every run in `runs` (name to the results.json of a distillation); None where none is logged."""
    logged = {name: run["losses"] for name, run in runs.items() if run.get("losses")}
    stages = list(dict.fromkeys(_stage(key) for losses in logged.values() for key, rows in losses.items() if rows))
    if not stages:
        return None
    columns = min(len(stages), 4)
    rows = -(-len(stages) // columns)
    figure, axes = panels(rows, columns, (max(4.6, 3.1 * columns), 3.2 * rows + 0.3))
    known = {view.name: view for view in views}
    spare = iter(_COLOURS * (1 + len(logged)))
    colours = {name: known[name].colour if name in known else next(spare) for name in logged}
    for stage, panel in zip(stages, axes, strict=False):
        heading(panel, stage, LOSSES.get(stage, "loss"))
        top = 0.0
        for name, losses in logged.items():
            for key, lines in losses.items():
                if _stage(key) != stage or not lines:
                    continue
                tokens = np.array([line["tokens"] for line in lines], np.float64)
                loss = np.array([line["loss"] for line in lines], np.float64)
                panel.plot(tokens, loss, color=colours[name], alpha=0.22, linewidth=1)
                label = known[name].label if name in known else name
                panel.plot(tokens, smooth(loss), color=colours[name], linewidth=2, label=label)
                top = max(top, float(tokens[-1]))
        _axes(panel, top)
    for panel in axes[len(stages) :]:
        panel.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    return figure


def smooth(loss: Floats, share: float = 0.03) -> Floats:
    """Mean under a bell over about `share` of the steps to either side; at the ends over what there is."""
    width = max(1.0, share * len(loss))
    reach = min(round(3 * width), len(loss) - 1)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    middle = slice(reach, reach + len(loss))
    smoothed: Floats = np.convolve(loss, bell)[middle] / np.convolve(np.ones_like(loss), bell)[middle]
    return smoothed


def _axes(panel: Any, top: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if all(min(line.get_ydata()) > 0 for line in panel.get_lines()):
        panel.set_yscale("log")
        low, high = panel.get_ylim()
        if high / low > 4:
            log_ticks(panel.yaxis, low, high)
        else:
            panel.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: plain(float(f"{value:.2g}"))))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(float(f"{value:.2g}"))))
            panel.yaxis.set_minor_locator(MaxNLocator(4))
    panel.set_xlim(0, top * 1.02 or 1)
    panel.xaxis.set_major_locator(MaxNLocator(4))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    panel.set_xlabel("tokens", color=MUTED)


def _stage(key: str) -> str:
    """The stage in a log key: "2-imitate" is "imitate"."""
    number, dash, name = key.partition("-")
    return name if dash and number.isdigit() else key
