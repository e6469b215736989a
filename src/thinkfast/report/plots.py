"""The figures of an evaluation: accuracy against seconds, against samples, and speed.

Shapes: G points of a curve.

Usage: ``with theme(): figure = against_seconds(summary, "coverage"); save_png(figure, path)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from thinkfast.report.canvas import MUTED, end_labels, heading, log_ticks, panels, percent_axis, plain
from thinkfast.report.duels import Metric
from thinkfast.report.summary import SampleCurve, Summary
from thinkfast.report.views import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASH = (0, (4, 1.6))
TITLES: Mapping[Metric, tuple[str, str]] = {
    "coverage": ("Coverage against seconds", "share of problems with at least one right chain by then"),
    "majority": ("Majority accuracy against seconds", "share of problems whose majority answer is right by then"),
}


def against_seconds(summary: Summary, metric: Metric) -> Figure:
    """Coverage or majority accuracy over measured seconds, with shaded 95 % intervals."""
    figure, (axes,) = panels(1, 1, (6.4, 4.3))
    heading(axes, *TITLES[metric])
    percent_axis(axes)
    ends = []
    low, high = np.inf, 0.0
    for view in summary.views:
        curve = summary.curves[metric].get(view.name)
        if curve is None:
            continue
        x, style = curve.seconds, _style(view)
        axes.fill_between(x, curve.low, curve.high, color=view.colour, alpha=_shade(view), linewidth=0)
        axes.plot(x, curve.value, color=view.colour, linestyle=style)
        axes.plot(x[-1], curve.value[-1], "o", color=view.colour, markersize=5)
        ends.append((float(curve.value[-1]), view.label, view.colour))
        low, high = min(low, float(x[0])), max(high, float(x[-1]))
    if ends:
        _seconds_axis(axes, low, high, summary.problems)
        end_labels(axes, ends)
    else:
        _nothing(axes, "no system finished a chain")
    return figure


def against_samples(summary: Summary) -> Figure:
    """pass@k and maj@k over the number of samples, unbiased over random subsets."""
    figure, axes = panels(1, 2, (12, 4.4))
    titles = (("Coverage, pass@k", "coverage"), ("Majority accuracy, maj@k", "majority"))
    for at, (title, key) in enumerate(titles):
        metric: Metric = "coverage" if key == "coverage" else "majority"
        heading(axes[at], title, "mean over random subsets of k samples")
        percent_axis(axes[at])
        axes[at].set_xlabel("samples per problem, k")
        curves = summary.samples[metric]
        for view in summary.views:
            if view.name in curves:
                _draw_samples(axes[at], view, curves[view.name])
        if not curves:
            _nothing(axes[at], "no system has a sample of every problem")
            continue
        most = max(curve.k[-1] for curve in curves.values())
        axes[at].set_xscale("log", base=2)
        _powers_of_two(axes[at], most)
        if at == 0:
            axes[at].legend(loc="lower right")
    return figure


def throughput(summary: Summary, bench: Mapping[str, Any] | None) -> Figure:
    """Tokens per second: measured in this evaluation, and by the bench over length and batch where it was run."""
    points = list((bench or {}).get("throughput") or [])
    lengths, batches = _sweep(points, "new_tokens", "batch"), _sweep(points, "batch", "new_tokens")
    wide = 1 + bool(lengths) + bool(batches)
    figure, axes = panels(1, wide, (7.6 if wide == 1 else 5.0 * wide, max(3.4, 1.6 + 0.42 * len(summary.views))))
    _bars(axes[0], summary.views)
    rest = axes[1:]
    if lengths:
        _lines(rest[0], summary.views, lengths, "new tokens per chain", "batch")
        _break_even(rest[0], bench or {}, summary.views)
    if batches:
        _lines(rest[-1], summary.views, batches, "chains in the batch", "new tokens")
    return figure


def _style(view: View) -> Any:
    return DASH if view.dashed else "solid"


def _shade(view: View) -> float:
    return 0.07 if view.dashed else 0.14


def _nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.set_xticks([])


def _seconds_axis(axes: Axes, low: float, high: float, problems: int) -> None:
    low, high = (low, high) if low < high else (low / 2, high * 2)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    log_ticks(axes.xaxis, low, high)
    s = "s" * (problems != 1)
    axes.set_xlabel(f"seconds for all {problems} problem{s} (log);  per problem: divide by {problems}")


def _draw_samples(axes: Axes, view: View, curve: SampleCurve) -> None:
    axes.fill_between(curve.k, curve.low, curve.high, color=view.colour, alpha=_shade(view), linewidth=0)
    axes.plot(
        curve.k, curve.value, marker="o", markersize=4, color=view.colour, linestyle=_style(view), label=view.label
    )


def _powers_of_two(axes: Axes, most: int) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.xaxis.set_major_locator(FixedLocator([2**e for e in range(most.bit_length())]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(0.93, max(most, 2) * 1.07)


def _bars(axes: Axes, views: Sequence[View]) -> None:
    heading(axes, "Tokens per second", "this evaluation, prefill and checking included")
    speeds = [view.record.tokens_per_second for view in views]
    top = max(speeds) or 1.0
    for at, (view, speed) in enumerate(zip(views, speeds, strict=True)):
        axes.barh(at, speed, color=view.colour, height=0.62, alpha=0.55 if view.dashed else 0.92)
        axes.text(speed + top * 0.015, at, f"{speed:,.0f}", va="center", fontsize=9.5, color=view.colour)
    axes.set_yticks(range(len(views)), [view.label for view in views])
    axes.set_ylim(len(views) - 0.4, -0.6)
    axes.set_xlim(0, top * 1.16)
    axes.grid(visible=False)
    axes.xaxis.set_visible(False)
    axes.spines[["bottom", "left"]].set_visible(False)


def _sweep(points: Sequence[Mapping[str, Any]], along: str, fixed: str) -> dict[str, Any] | None:
    """The bench points that share one value of `fixed` and differ most in `along`; None where there is no such line."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for point in points:
        groups.setdefault(point[fixed], []).append(point)
    if not groups:
        return None
    value, best = max(groups.items(), key=lambda item: (len({p[along] for p in item[1]}), item[0]))
    return {"fixed": value, "along": along, "points": best} if len({p[along] for p in best}) > 1 else None


def _lines(axes: Axes, views: Sequence[View], sweep: Mapping[str, Any], label: str, fixed: str) -> None:
    heading(axes, f"Against {label}", f"bench, {fixed} {sweep['fixed']}")
    along, seen, speeds, ends = sweep["along"], [], [], []
    drawn = {view.name: view for view in views}
    for name in dict.fromkeys(point["system"] for point in sweep["points"]):
        for engine in dict.fromkeys(p.get("engine", "thinkfast") for p in sweep["points"] if p["system"] == name):
            mine = [p for p in sweep["points"] if p["system"] == name and p.get("engine", "thinkfast") == engine]
            mine.sort(key=lambda p: p[along])
            view, ours = drawn.get(name), engine == "thinkfast"
            x, y = [p[along] for p in mine], [p["tokens_per_second"] for p in mine]
            colour = view.colour if view is not None else MUTED
            text = (view.label if view is not None else name) + ("" if ours else f", {engine}")
            axes.plot(x, y, marker="o" if ours else "s", markersize=4, color=colour, linestyle="-" if ours else ":")
            ends.append((y[-1], text, colour))
            seen += x
            speeds += y
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(seen)), [plain(value) for value in sorted(set(seen))])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylim(0, max(speeds) * 1.25)
    axes.set_ylabel("tokens per second")
    end_labels(axes, ends)


def _break_even(axes: Axes, bench: Mapping[str, Any], views: Sequence[View]) -> None:
    """Vertical lines where a student overtakes its teacher: predicted (dotted) and measured (dashed)."""
    low, high = axes.get_xlim()
    colours = {view.name: view.colour for view in views}
    for row, each in enumerate(bench.get("break_even") or []):
        colour = colours.get(each["student"], MUTED)
        found = {name: each.get(f"{name}_tokens") for name in ("predicted", "measured")}
        inside = sorted((at, name) for name, at in found.items() if at is not None and low <= at <= high)
        for place, (at, name) in enumerate(inside):
            axes.axvline(at, color=colour, linestyle=":" if name == "predicted" else "--", linewidth=1.1)
            left = place == 0 and len(inside) > 1
            axes.annotate(
                f"{name} {at:.0f}",
                (at, 0.96 - 0.075 * row),
                (-4 if left else 4, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="right" if left else "left",
                fontsize=8.5,
                color=colour,
            )
