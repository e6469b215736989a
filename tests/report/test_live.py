"""Live runs agree with their replay; here on a clock that the engine's own steps advance, so that it is exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import thinkfast.engine.llm
import thinkfast.engine.session
import thinkfast.judge.solve
import thinkfast.judge.source
from thinkfast.data.problems import Problem, load_problems
from thinkfast.engine.llm import LLM
from thinkfast.engine.request import SamplingParams
from thinkfast.errors import InputError
from thinkfast.judge.answer import judge
from thinkfast.report.live import LIVE, LiveRow, agreement, load_times, read_live, run_live, save_times
from thinkfast.report.replay import Recording, StepTimes, record
from thinkfast.report.samples import Row

ROW_STEP = 0.001
TIMES = StepTimes(((1, ROW_STEP), (16, 16 * ROW_STEP)), 0.0)
SETTINGS: dict[str, Any] = {"n": 8, "temperature": 1.0, "max_tokens": 300, "seed": 0}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny", max_batch=16, max_len=512)


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return load_problems("tiny_val:3", 8)


@pytest.fixture(scope="module")
def log(llm: LLM, problems: list[Problem]) -> Recording:
    rows = []
    chains = llm.generate([p.question for p in problems], SamplingParams(n=8, max_tokens=300))
    for problem, mine in zip(problems, chains, strict=True):
        for c in mine:
            v = judge(c.text, problem.answer, last_number=c.finish == "stop")
            told = (v.answer, v.key, v.correct, c.finish, c.logprob, 1.0)
            rows.append(Row("tiny", problem.id, c.index, len(c.tokens), c.text, *told))
    prompts = {p.id: len(llm.tokenizer.chat(p.question)) for p in problems}
    return record(rows, "tiny", [p.id for p in problems], prompts, TIMES, 16)


@pytest.fixture
def clock(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(seconds=100.0)
    step = llm._runner.step

    def slow_step() -> Any:
        now.seconds += ROW_STEP * llm._runner.cache.rows
        return step()

    monkeypatch.setattr(llm._runner, "step", slow_step)
    fake = SimpleNamespace(monotonic=lambda: now.seconds, sleep=lambda seconds: None)
    for module in (thinkfast.engine.llm, thinkfast.engine.session, thinkfast.judge.solve, thinkfast.judge.source):
        monkeypatch.setattr(module, "time", fake)


def test_live_and_replay_agree_and_a_stopped_run_goes_on(
    llm: LLM, problems: list[Problem], log: Recording, clock: None, tmp_path: Path
) -> None:
    seen: list[LiveRow] = []

    def stop(row: LiveRow) -> None:
        seen.append(row)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_live(tmp_path, "tiny", llm, problems, [0.6, 1.6], on_row=stop, **SETTINGS)
    with pytest.raises(InputError, match="5 problems have no live answer in 0.6 s"):
        agreement(read_live(tmp_path), log)
    run_live(tmp_path, "tiny", llm, problems, [0.6, 1.6], on_row=seen.append, **SETTINGS)
    assert len(seen) == len(read_live(tmp_path)) == 16  # nothing twice
    assert all(row.took <= row.budget + 16 * ROW_STEP for row in seen)
    found = agreement(read_live(tmp_path), log)
    assert [each.budget for each in found] == [0.6, 1.6]
    assert all(each.agree for each in found)
    assert all(each.live.low <= each.replayed.value <= each.live.high for each in found)
    assert found[1].live.value >= 0.5
    # A replay that believes in steps of half the price would not have agreed where seconds matter.
    line = (tmp_path / LIVE).read_text().splitlines()[0]
    (tmp_path / LIVE).write_text(f"{line}\n{line}\n")
    with pytest.raises(InputError, match="is there twice"):
        read_live(tmp_path)


def test_wrong_step_times_are_noticed(log: Recording) -> None:
    """The agreement can fail: a replay on a clock ten times too slow answers nothing."""
    rows = [LiveRow("tiny", 1.0, p, "1", True, 1.0, None, 1.0, 8, 800) for p in log.problems]
    slow = replace(log, times=StepTimes(((1, 0.1), (16, 1.6)), 0.0))
    (found,) = agreement(rows, slow)
    assert found.replayed.value == 0
    assert not found.agree


def test_times_travel_with_the_run(tmp_path: Path) -> None:
    assert load_times(tmp_path) == ({}, {})
    save_times(tmp_path, {"tiny": (TIMES, 16)}, {"a": 7})
    assert load_times(tmp_path) == ({"tiny": (TIMES, 16)}, {"a": 7})
    assert [TIMES.step(rows) for rows in (1, 8, 16, 32)] == pytest.approx([0.001, 0.008, 0.016, 0.032])
    assert np.isclose(StepTimes(((4, 2.0),), 0.0).step(1), 2.0)
