"""Axes of plots say where they are."""

from __future__ import annotations

import pytest

from thinkfast.report.canvas import log_ticks


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (1, 10, ["1", "2", "5", "10"]),
        (0.01, 1000, ["0.01", "0.1", "1", "10", "100", "1k"]),
        # Two of 1, 2, 5 are not in these, as in the report of an evaluation that took a tenth of a second.
        (0.06, 0.098, ["0.06", "0.07", "0.08", "0.09"]),
        (3, 4.9, ["3", "3.5", "4", "4.5"]),
        (1.1, 2.2, ["1.5", "2"]),
    ],
)
def test_a_log_axis_of_any_width_has_ticks(low: float, high: float, labels: list[str]) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    log_ticks(axes.xaxis, low, high)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == labels
