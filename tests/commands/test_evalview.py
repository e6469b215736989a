"""The eval's progress: what is there before the first chain ends, after a resume, and without a terminal."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import cast

import pytest
from rich.console import Console
from rich.progress import ProgressColumn

from thinkfast.commands import _evalview
from thinkfast.commands._evalview import EvalView
from thinkfast.engine.plan import make_plan
from thinkfast.models.spec import ModelSpec
from thinkfast.report.evalconfig import EvalConfig
from thinkfast.report.samples import Row
from thinkfast.report.systemrun import Start


def console() -> tuple[Console, Callable[[], str]]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=100, color_system=None), out.getvalue


def row(seconds: float) -> Row:
    return Row("smollm2", "p", 0, 200, "text", "5", "5", True, "stop", -1.0, seconds)


def test_speed_counts_chains_that_are_not_finished() -> None:
    shown, text = console()
    with EvalView(EvalConfig(("smollm2",), n=8), shown) as view:
        view.load("smollm2")
        view._bar.refresh()
        assert "smollm2: loading" in text()
        view.start(Start("smollm2", 160, 0, 0.0, lambda: (4.0, 1200)))
        view._bar.refresh()
        assert "0/160 chains  300 tokens/s  4.0 s" in text()
        view.chain(row(5.0))
        view._bar.refresh()
        assert "1/160 chains" in text()


def test_what_a_gpus_memory_is_taken_for_is_told() -> None:
    spec = ModelSpec(64, 32, 2, 2, 16, 48, ("attention",) * 2, max_positions=512)
    plan = make_plan(spec, 8, 100, 4, None)
    for device, told in (("cuda", True), ("cpu", False)):
        shown, text = console()
        with EvalView(EvalConfig(("a",), n=8, device=device), shown) as view:
            view.load("a")
            view.plan(plan)
        assert ("8 rows of up to 100 tokens" in text()) is told


@pytest.mark.parametrize(
    ("max_tokens", "max_batch", "told"),
    [
        (512, 64, [False, False]),
        (512, 100_000_000, [False, True]),
        (100_000, 64, [True, False]),
        (512, 8, [False, False]),
    ],
)
def test_what_is_cut_down_is_told(max_tokens: int, max_batch: int, told: list[bool]) -> None:
    spec = ModelSpec(64, 32, 2, 2, 16, 48, ("attention",) * 2, max_positions=600)
    plan = make_plan(spec, 8, min(600, 20 + max_tokens), 4, None)
    shown, text = console()
    with EvalView(EvalConfig(("a",), n=8, max_tokens=max_tokens, max_batch=max_batch), shown) as view:
        view.load("a")
        view.plan(plan)
    assert [words in text() for words in ("chains end at 600 tokens", "8 chains are decoded together")] == told


def test_a_resumed_run_says_where_it_goes_on() -> None:
    shown, text = console()
    with EvalView(EvalConfig(("smollm2",), n=8), shown) as view:
        view.start(Start("smollm2", 160, 80, 281.2, lambda: (291.2, 1000)))
        view._bar.refresh()
    assert "going on after 80 of 160 chains and 281 s" in text()
    assert "80/160 chains  100 tokens/s" in text()


def test_a_finished_bar_keeps_its_figures() -> None:
    shown, _ = console()
    with EvalView(EvalConfig(("a",), n=1), shown) as view:
        clock = iter([(1.0, 10), (2.0, 40), (3.0, 90), (9.0, 90), (9.0, 90), (9.0, 90)])
        view.start(Start("a", 1, 0, 0.0, lambda: next(clock)))
        view.chain(row(2.0))
        column = cast(ProgressColumn, view._bar.columns[3])
        first = column(view._bar.tasks[0])
        assert "1/1 chains" in str(first)
        assert column(view._bar.tasks[0]) == first


def test_a_bar_stands_when_the_next_system_begins() -> None:
    shown, _ = console()
    seconds = 5.0
    with EvalView(EvalConfig(("a", "b"), seconds=20.0), shown) as view:
        view.load("a")
        view.start(Start("a", None, 0, 0.0, lambda: (seconds, 1000)))
        view.load("b")
        seconds = 10.0
        view.start(Start("b", None, 0, 0.0, lambda: (1.0, 1000)))
        first, second = view._bar.tasks
        column = cast(ProgressColumn, view._bar.columns[3])
        assert str(column(first)) == "0 chains  200 tokens/s  5.0 s"
        assert first.finished and not second.finished  # noqa: PT018 one picture
    assert view._bar.tasks[1].finished


@pytest.mark.parametrize(
    ("total", "said"),
    [(1728, "smollm2: 386 of 1,728 chains after 5 s\n"), (None, "smollm2: 386 chains so far, after 5 s\n")],
)
def test_without_a_terminal_a_line_now_and_then(
    total: int | None, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_evalview, "EVERY", -1.0)
    with EvalView(EvalConfig(("smollm2",), n=8), Console(file=io.StringIO())) as view:
        view.load("smollm2")
        view.start(Start("smollm2", total, 385, 0.0, lambda: (4.0, 1200)))
        view.chain(row(5.0))
    assert capsys.readouterr().err == said
