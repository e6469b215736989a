"""Parallel distillation: same weights as alone, events by name, an error of one stops the others and is raised."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from thinkfast.distill.parallel import run_parallel
from thinkfast.distill.recipe import DataConfig, Recipe, StageConfig
from thinkfast.distill.run import run_recipe
from thinkfast.errors import GateError


def recipe(name: str, keep: tuple[int, ...], gate: float | None = None) -> Recipe:
    stage = StageConfig("align", tokens=1200.0, lr=1e-3, batch_tokens=600, train="mixers", gate=gate)
    return Recipe(name=name, stages=(stage,), keep=keep, data=DataConfig(pool=12, difficulties=(3,)), parts=2)


@pytest.mark.timeout(300)
def test_parallel_equals_alone_and_reports_by_name(tmp_path: Path) -> None:
    jobs = [(recipe("a", (3,)), tmp_path / "a"), (recipe("b", ()), tmp_path / "b")]
    seen: list[tuple[str, int]] = []
    gates: list[str] = []
    notes: list[tuple[str, str]] = []
    results = run_parallel(
        jobs,
        on_step=lambda name, event: seen.append((name, event.step)),
        on_gate=lambda name, gate: gates.append(name),
        on_note=lambda name, text: notes.append((name, text)),
    )
    assert {name for name, text in notes if text.startswith("making pool.npz")} == {"a", "b"}
    assert [r.name for r in results] == ["a", "b"]
    assert sorted(gates) == ["a", "b"]
    assert {name: [s for n, s in seen if n == name] for name in "ab"} == {"a": [1, 2], "b": [1, 2]}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = run_recipe(jobs[1][0], tmp_path / "alone")
    finally:
        torch.set_num_threads(threads)
    weights = "model.safetensors"
    assert (alone.model_dir / weights).read_bytes() == (results[1].model_dir / weights).read_bytes()


@pytest.mark.timeout(300)
def test_a_missed_gate_in_a_worker_is_raised_here(tmp_path: Path) -> None:
    jobs = [(recipe("a", (), gate=1e-9), tmp_path / "a")]
    with pytest.raises(GateError, match="layer error"):
        run_parallel(jobs)
    assert not (tmp_path / "a" / "results.json").exists()
    # Nothing of a failed stage is taken for a passed one by the next run.
    with pytest.raises(GateError, match="layer error"):
        run_parallel([(replace(jobs[0][0]), tmp_path / "a")])


@pytest.mark.timeout(300)
def test_one_that_fails_stops_the_others_which_can_go_on(tmp_path: Path) -> None:
    long = replace(recipe("long", ()), stages=(replace(recipe("long", ()).stages[0], tokens=600e3),))
    jobs = [(long, tmp_path / "long"), (recipe("bad", (3,), gate=1e-9), tmp_path / "bad")]
    with pytest.raises(GateError, match="layer error"):
        run_parallel(jobs)
    done = len((tmp_path / "long" / "stages" / "0-align" / "align.losses.jsonl").read_text().splitlines())
    assert 0 < done < 1000
    assert torch.get_num_threads() >= 1
    assert not [t for t in threading.enumerate() if t.name.startswith(("part", "run"))]
