"""A distillation's progress where no terminal shows it: a line now and then, and what a run is about."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from thinkfast.commands import _distillview
from thinkfast.commands._distillview import DistillView
from thinkfast.distill.recipe import Recipe, StageConfig
from thinkfast.distill.trainer import StepEvent

RECIPE = Recipe("pure", (StageConfig("orient", 400.0, 1e-3, 4), StageConfig("align", 8000.0, 1e-3, 4)))


def shown(every: float, monkeypatch: pytest.MonkeyPatch, *, terminal: bool = False) -> list[str]:
    """What is printed of a run that goes on after step 100 of align and takes two seconds a step."""
    monkeypatch.setattr(_distillview, "EVERY", every)
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=terminal, color_system=None, soft_wrap=True)
    with DistillView({"pure": RECIPE}, console) as view:
        view.note("pure", "going on with align after 100 of 2,000 steps")
        for step in range(101, 111):
            view.step("pure", StepEvent("align", step, 2000, 4 * step, 0.25, 1e-3, 2.0 * (step - 100)))
    return [line for line in out.getvalue().splitlines() if "pure: " in line]


def test_without_a_terminal_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *lines = shown(0.0, monkeypatch)
    assert first == "  pure: going on with align after 100 of 2,000 steps"
    assert len(lines) == 10
    # 1,890 steps at the two seconds that this process took for one, whatever was done before it
    assert lines[-1] == "  pure: align, step 110 of 2,000, loss 0.2500, about 63 min left of this stage"
    assert shown(3600.0, monkeypatch) == [first]


def test_a_terminal_has_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [line for line in shown(0.0, monkeypatch, terminal=True) if "left of this stage" in line]
