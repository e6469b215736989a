"""How figures look, and how they leave: one theme, PNG for slides, SVG for the page.

Why: matplotlib's object API with settings held for the time of drawing leaves pyplot, its windows and anybody's
notebook alone.

Usage: ``with theme(): figure, axes = panels(1, 2); ...; save_png(figure, path); svg = to_svg(figure)``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinkfast.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, FAINT = "#1f2329", "#5b6470", "#e4e7eb"
DPI = 200

_THEME: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": "#c3c9d1",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 3.5,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 2.2,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "thinkfast",
}
_OUTSIDE = re.compile(r"<metadata>.*?</metadata>|<!DOCTYPE.*?>|<\?xml.*?\?>", re.DOTALL)


@contextmanager
def theme() -> Iterator[None]:
    """The settings that figures are drawn and saved under."""
    import matplotlib

    with matplotlib.rc_context(_THEME):
        yield


def panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of `size` inches with rows x columns axes, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    found = figure.subplots(rows, columns, squeeze=False)
    return figure, list(found.ravel())


def heading(axes: Axes, text: str, below: str = "") -> None:
    """A title at the left, with a muted second line."""
    axes.set_title(text, loc="left", fontsize=12, fontweight="bold", color=INK, pad=22 if below else 8)
    if below:
        axes.annotate(
            below, (0, 1), (0, 7), xycoords="axes fraction", textcoords="offset points", fontsize=9.5, color=MUTED
        )


def percent_axis(axes: Axes) -> None:
    """Shares from 0 to 1 as percent."""
    from matplotlib.ticker import PercentFormatter

    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def log_ticks(axis: Any, low: float, high: float) -> None:
    """Ticks at 1, 2, 5, 10, ... (only 1, 10, 100 over many decades, and even steps between two of them) written as
    plain numbers.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    few = high / max(low, 1e-12) > 2e3
    ticks = [m * 10.0**e for e in range(-6, 13) for m in ((1,) if few else (1, 2, 5))]
    shown = [tick for tick in ticks if 0.999 * low <= tick <= 1.001 * high]
    if len(shown) < 2:
        shown = [
            float(tick) for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high
        ]
    axis.set_major_locator(FixedLocator(shown))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def plain(value: float) -> str:
    """A positive number for an axis: "0.5", "20", "1024", "50k", "2M"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= (size if size > 1e3 else 1e4) or value == size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def end_labels(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write (y in data units, text, colour) at the right edge, moved apart where they would overlap."""
    if not ends:
        return
    low, high = axes.get_ylim()
    gap = 0.25 / axes.figure.get_figheight()  # type: ignore[union-attr]
    at = sorted(range(len(ends)), key=lambda i: ends[i][0])
    places: list[float] = []
    for i in at:
        y = (ends[i][0] - low) / (high - low)
        places.append(max(y, places[-1] + gap) if places else y)
    places[-1] = min(places[-1], 0.98)
    for j in range(len(places) - 2, -1, -1):
        places[j] = min(places[j], places[j + 1] - gap)
    for i, y in zip(at, places, strict=True):
        _, text, colour = ends[i]
        axes.annotate(
            text,
            (1, y),
            (8, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            fontweight="bold",
            color=colour,
            annotation_clip=False,
        )


def save_png(figure: Figure, path: Path) -> None:
    """Write `figure` as PNG, and settle its layout: finding it again costs more than drawing. Errors: OutputError."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
    figure.set_layout_engine("none")
    atomic_write(path, data.getvalue())


def to_svg(figure: Figure) -> str:
    """A whole SVG file for slides."""
    data = io.StringIO()
    figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return data.getvalue()


def as_element(svg: str, name: str) -> str:
    """An `<svg>` element for a page, of a whole file: text in the page's own font, every id begins with `name`."""
    svg = _OUTSIDE.sub("", svg).strip()
    svg = svg.replace("'DejaVu Sans'", "var(--sans)").replace('xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    svg = svg.replace('xmlns="http://www.w3.org/2000/svg"', "").replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r'<svg ([^>]*?)\bwidth="[^"]*"', r"<svg \1", svg, count=1)
    return re.sub(r'<svg ([^>]*?)\bheight="[^"]*"', r'<svg role="img" \1', svg, count=1)
