from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from thinkfast.data.corpus import Batch, Corpus
from thinkfast.distill.recipe import StageConfig
from thinkfast.distill.stages import Imitate, make_stage
from thinkfast.distill.trainer import StepEvent, save_state, train_stage
from thinkfast.errors import GateError, OutputError
from thinkfast.jsonl import JsonlLog

STEPS = 24  # of a stage job in zygote.py


def config(steps: int = 6, **changes: Any) -> StageConfig:
    return StageConfig(**({"name": "imitate", "tokens": 60 * steps, "batch_tokens": 60, "lr": 1e-2} | changes))


def rows(folder: Path, name: str = "imitate") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.losses.jsonl").read_text().splitlines()]


def same_state(a: Any, b: Any) -> bool:
    """Equal bit for bit, all the way down."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_state, a, b))
    return bool(a == b)


def finished(folder: Path) -> tuple[bytes, Any]:
    state = torch.load(folder / "align.pt", weights_only=True)
    assert state["step"] == STEPS
    return (folder / "align.losses.jsonl").read_bytes(), state


@pytest.fixture(scope="module", params=["adamw", "muon"])
def undisturbed(request: pytest.FixtureRequest, jobs: Any, tmp_path_factory: Any) -> tuple[str, bytes, Any]:
    folder = tmp_path_factory.mktemp("undisturbed") / request.param
    assert jobs.run("stage", folder, optimiser=request.param) == 0
    log, state = finished(folder)
    assert len(log.splitlines()) == STEPS
    return request.param, log, state


def test_killed_at_known_steps_ends_the_same(undisturbed: Any, jobs: Any, tmp_path: Path) -> None:
    optimiser, log, state = undisturbed
    folder = tmp_path / "run"
    # A kill in on_step falls after the loss is logged and before its checkpoint: the log is ahead and must be cut.
    for step in (0, 1, 0, 3, 9):
        assert jobs.run("stage", folder, optimiser=optimiser, die_at_step=step) == -9
    # Inside a checkpoint: written, but not in place yet (even counts), or in place and its folder not synced (odd).
    for write in (4, 7):
        assert jobs.run("stage", folder, optimiser=optimiser, die_at_write=write) == -9
    assert 0 < len((folder / "align.losses.jsonl").read_bytes().splitlines()) < STEPS
    assert jobs.run("stage", folder, optimiser=optimiser) == 0
    again = finished(folder)
    assert again[0] == log
    assert same_state(again[1], state)


def test_killed_at_random_moments_ends_the_same(undisturbed: Any, jobs: Any, tmp_path: Path) -> None:
    optimiser, log, state = undisturbed
    folder, dice, killed = tmp_path / "run", random.Random(optimiser), 0
    for _ in range(8):
        status = jobs.run("stage", folder, optimiser=optimiser, save_every=0.01, kill_after=dice.uniform(0.02, 0.25))
        killed += status == -9
    assert killed
    assert jobs.run("stage", folder, optimiser=optimiser) == 0
    again = finished(folder)
    assert again[0] == log
    assert same_state(again[1], state)


def test_a_log_torn_in_the_middle_of_a_line_is_mended(undisturbed: Any, jobs: Any, tmp_path: Path) -> None:
    optimiser, log, state = undisturbed
    folder = tmp_path / "run"
    assert jobs.run("stage", folder, optimiser=optimiser, die_at_step=9) == -9
    path = folder / "align.losses.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    assert jobs.run("stage", folder, optimiser=optimiser) == 0
    again = finished(folder)
    assert again[0] == log
    assert same_state(again[1], state)


@pytest.fixture
def trained(make_model: Any, corpus: Corpus, tmp_path: Path) -> Callable[..., tuple[Any, Any, list[StepEvent]]]:
    """trained(config, ...): one run of a stage in this process; returns teacher, student and what on_step saw."""

    def run(stage_config: StageConfig, **kwargs: Any) -> tuple[Any, Any, list[StepEvent]]:
        teacher = make_model("teacher", dtype=torch.float32)
        student = make_model("hybrid", seed=1, dtype=torch.float32)
        seen: list[StepEvent] = []
        stage = kwargs.pop("stage", make_stage)(stage_config, student, teacher)
        train_stage(stage, student, corpus, tmp_path, on_step=seen.append, **kwargs)
        return teacher, student, seen

    return run


def test_log_and_events_tell_every_step(trained: Any, corpus: Corpus, tmp_path: Path) -> None:
    stage_config = config()
    _, student, seen = trained(stage_config)
    log = rows(tmp_path)
    assert [r["step"] for r in log] == list(range(6))
    assert [r["lr"] for r in log] == [stage_config.lr_at(i) for i in range(6)]
    sizes = [corpus.batch(i).tokens.numel() for i in range(6)]
    assert [r["tokens"] for r in log] == [sum(sizes[: i + 1]) for i in range(6)]
    assert [(e.stage, e.step, e.steps, e.loss, e.tokens) for e in seen] == [
        ("imitate", r["step"] + 1, 6, r["loss"], r["tokens"]) for r in log
    ]
    assert not student.training
    assert not any(p.requires_grad for p in student.parameters())


def test_only_the_trainable_set_moves(trained: Any, make_model: Any) -> None:
    teacher, student, _ = trained(config(train="mixers"))
    before = make_model("hybrid", seed=1, dtype=torch.float32).state_dict()
    moved = {n for n, t in student.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {n for n in before if n.startswith(("layers.0.mixer.", "layers.2.mixer."))}
    assert same_state(dict(teacher.state_dict()), dict(make_model("teacher", dtype=torch.float32).state_dict()))


def test_a_finished_stage_trains_no_further(trained: Any, tmp_path: Path) -> None:
    _, first, seen = trained(config())
    log = (tmp_path / "imitate.losses.jsonl").read_bytes()
    _, again, more = trained(config())
    assert len(seen) == 6
    assert more == []
    assert same_state(dict(again.state_dict()), dict(first.state_dict()))
    assert (tmp_path / "imitate.losses.jsonl").read_bytes() == log


class Spoilt(Imitate):
    """A stage whose third loss, or its gradient, is not a number."""

    what = "loss"
    calls = 0

    def loss(self, batch: Batch) -> Tensor:
        self.calls += 1
        loss = super().loss(batch)
        if self.calls < 3:
            return loss
        if self.what == "loss":
            return loss * float("nan")
        zero = self.student.norm.weight.sum() * 0.0
        return loss + zero.sqrt()  # 0 to look at, inf * 0 to differentiate


class SpoiltGradient(Spoilt):
    what = "gradient norm"


@pytest.mark.parametrize("stage", [Spoilt, SpoiltGradient])
def test_a_loss_or_gradient_that_is_no_number_stops_at_its_step(stage: Any, trained: Any, tmp_path: Path) -> None:
    with pytest.raises(GateError, match=rf"imitate: the {stage.what} is nan at step 2") as caught:
        trained(config(), stage=stage)
    assert "0.01" in caught.value.remedy
    assert [r["step"] for r in rows(tmp_path)] == [0, 1]
    with JsonlLog(tmp_path / "imitate.losses.jsonl"):
        pass  # the log was let go


def test_a_second_run_in_the_folder_is_refused_before_it_cuts_the_log(trained: Any, tmp_path: Path) -> None:
    with JsonlLog(tmp_path / "imitate.losses.jsonl") as log:
        log.append({"step": 0, "tokens": 1, "loss": 1.0, "lr": 1.0})
        before = log.path.read_bytes()
        with pytest.raises(OutputError, match="another run"):
            trained(config())
        assert log.path.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "text", "other optimiser"])
def test_a_checkpoint_that_does_not_fit_is_named(damage: str, trained: Any, tmp_path: Path) -> None:
    trained(config())
    path = tmp_path / "imitate.pt"
    data = path.read_bytes()
    if damage == "other":
        torch.save({"step": 3}, path)
    elif damage != "other optimiser":
        path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "text": b"hello world"}[damage])
    changed = config(optimiser="muon") if damage == "other optimiser" else config()
    with pytest.raises(OutputError, match=r"imitate\.pt does not fit"):
        trained(changed)


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "state.pt"
    save_state(path, {"x": torch.zeros(3)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # a write past 1 MiB fails, as on a full disk
    try:
        with pytest.raises(OutputError, match=r"cannot write .*state\.pt") as caught:
            save_state(path, {"x": torch.zeros(1 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "disk" in caught.value.remedy
    assert torch.equal(torch.load(path, weights_only=True)["x"], torch.zeros(3))
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_training_learns_with_fp32_weights(optimiser: str, bf16: bool, trained: Any) -> None:
    _, student, seen = trained(config(30, lr=3e-3, optimiser=optimiser), bf16=bf16)
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    losses = [event.loss for event in seen]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
