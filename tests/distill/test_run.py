"""run_recipe from a small random teacher to a stock checkpoint: whole, killed, refused."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from thinkfast.data.problems import Problem
from thinkfast.distill.gates import generated_accuracy
from thinkfast.distill.recipe import DataConfig, Recipe, StageConfig, TeacherConfig
from thinkfast.distill.run import run_recipe
from thinkfast.distill.trainer import StepEvent
from thinkfast.errors import ConfigError, GateError, ModelError, OutputError, ProblemError, ThinkfastError
from thinkfast.models.checkpoint import save_checkpoint
from thinkfast.models.loading import ASSETS, load_model
from thinkfast.models.ragged import Ragged

NAMES = ("orient", "align", "imitate")


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from thinkfast.models.decoder import Decoder, init_weights
    from thinkfast.models.spec import ModelSpec

    model = Decoder(ModelSpec(512, 24, 4, 2, 6, 32, ("attention",) * 3, max_positions=512))
    init_weights(model, 0)
    return save_checkpoint(model, ASSETS / "tiny", tmp_path_factory.mktemp("teacher") / "model")


def stage(name: Any, steps: int = 2, **changes: Any) -> StageConfig:
    return StageConfig(**({"name": name, "tokens": 256.0 * steps, "batch_tokens": 256, "lr": 1e-3} | changes))


@pytest.fixture
def recipe(teacher_dir: Path) -> Recipe:
    data = DataConfig(pool=24, difficulties=(2,))
    return Recipe("small", tuple(map(stage, NAMES)), teacher=str(teacher_dir), keep=(1,), data=data, eval_problems=2)


def losses(out: Path) -> dict[str, str]:
    return {p.parent.name: p.read_text() for p in out.glob("stages/*/*.losses.jsonl")}


@pytest.mark.parametrize(("keep", "d_state", "dtype"), [((1,), None, "fp32"), ((), 4, "bf16")])
def test_a_recipe_ends_in_a_stock_checkpoint(
    keep: tuple[int, ...], d_state: int | None, dtype: Any, recipe: Recipe, teacher_dir: Path, tmp_path: Path
) -> None:
    recipe = replace(recipe, keep=keep, d_state=d_state, student_dtype=dtype)
    steps: list[str] = []
    gates: list[str] = []
    result = run_recipe(
        recipe, tmp_path / "out", on_step=lambda e: steps.append(e.stage), on_gate=lambda g: gates.append(g.stage)
    )
    assert steps == [name for name in NAMES for _ in range(2)]
    assert gates == [g.stage for g in result.gates] == list(NAMES)
    student, teacher = load_model(result.model_dir), load_model(teacher_dir)
    assert student.spec == teacher.spec.as_student(keep, d_state)
    assert student.tokenizer.chat("What is 2 + 3?") == teacher.tokenizer.chat("What is 2 + 3?")
    assert student.model(torch.arange(9), Ragged(torch.tensor([9]))).isfinite().all()
    weights = torch.load(tmp_path / "out" / "stages" / "2-imitate" / "weights.pt", weights_only=True)
    stored = torch.float32 if dtype == "fp32" else torch.bfloat16
    assert all(torch.equal(t, weights[n].to(stored).float()) for n, t in student.model.state_dict().items())
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["name"] == "small"
    assert results["teacher"]["sha256"] == teacher.sha
    assert results["parameters"] == student.spec.n_params
    assert [len(rows) for rows in results["losses"].values()] == [2, 2, 2]
    assert [row["value"] for row in results["gates"]] == [g.value for g in result.gates]
    assert not list(tmp_path.glob("out/stages/*/[!w]*.pt"))  # checkpoints of finished stages are gone


def test_a_finished_run_returns_at_once(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    copied = tmp_path / "teacher"
    shutil.copytree(recipe.teacher, copied)
    recipe = replace(recipe, teacher=str(copied))
    first = run_recipe(recipe, out)
    shutil.rmtree(copied)  # not even the teacher is looked at
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}

    def never(_: object) -> None:
        raise AssertionError

    assert run_recipe(recipe, out, on_step=never, on_gate=never) == first
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_a_deleted_result_is_made_again_without_training(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run_recipe(recipe, out)
    weights = (first.model_dir / "model.safetensors").read_bytes()
    shutil.rmtree(first.model_dir)
    steps: list[object] = []
    again = run_recipe(recipe, out, on_step=steps.append)
    assert steps == []
    assert again == first
    assert (again.model_dir / "model.safetensors").read_bytes() == weights


def test_killed_at_any_write_and_at_steps_ends_the_same(jobs: Any, teacher_dir: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert jobs.run("recipe", whole, teacher=str(teacher_dir)) == 0
    dice, kills = random.Random(0), 0
    # Before the folder's claim, inside the pools, at the first step, then at random writes until it is through: the
    # last step, the model's folder, is a dozen writes that only count together.
    for job in ({"die_at_write": 0}, {"die_at_write": 2}, {"die_at_write": 4}, {"die_at_step": 0}):
        assert jobs.run("recipe", killed, teacher=str(teacher_dir), **job) == -9
    while (status := jobs.run("recipe", killed, teacher=str(teacher_dir), die_at_write=dice.randint(1, 16))) != 0:
        assert status == -9
        kills += 1
        assert kills < 60
    assert kills > 3
    assert losses(killed) == losses(whole)
    for name in ("model/model.safetensors", "model/config.json", "recipe.yaml"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    ours, theirs = (json.loads((out / "results.json").read_text()) for out in (killed, whole))
    for results in (ours, theirs):
        del results["seconds"], results["provenance"]
    assert ours == theirs
    assert not list(killed.rglob(".thinkfast-tmp-*"))


@pytest.mark.parametrize("moment", ["first step", "gate", "weights", "finish"])
def test_killed_between_stages_gives_the_same_weights(
    moment: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_recipe(recipe, tmp_path / "whole")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        if moment == "weights":  # after align's gate, before its weights are kept
            patched.setattr("thinkfast.distill.run.save_state", stop)
        if moment == "finish":
            patched.setattr("thinkfast.distill.run.save_checkpoint", stop)
        # The first step of align has no checkpoint yet: it goes on from the weights that orient left.
        on_step = (lambda e: stop() if e.stage == "align" else None) if moment == "first step" else None
        on_gate = (lambda g: stop() if g.stage == "align" else None) if moment == "gate" else None
        run_recipe(recipe, tmp_path / "stopped", on_step=on_step, on_gate=on_gate)
    resumed = run_recipe(recipe, tmp_path / "stopped")
    assert resumed.gates == whole.gates
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    first, second = ((r.model_dir / "model.safetensors").read_bytes() for r in (whole, resumed))
    assert first == second


def test_a_run_tells_of_its_pools_and_of_where_it_goes_on(recipe: Recipe, tmp_path: Path) -> None:
    def stop(event: StepEvent) -> None:
        if (event.stage, event.step) == at:
            raise KeyboardInterrupt

    def told(**callbacks: Any) -> list[str]:
        notes: list[str] = []
        with suppress(KeyboardInterrupt):
            run_recipe(replace(recipe, save_every=0.0), tmp_path / "out", on_note=notes.append, **callbacks)
        return notes

    at = ("orient", 2)
    made = told(on_step=stop)
    assert [re.sub(r"\d+ s$", "N s", note) for note in made] == [
        "making pool.npz: 24 examples of tiny_train",
        "pool.npz is made: 24 examples in N s",
        "making held_out.npz: 128 examples of tiny_val",
        "held_out.npz is made: 128 examples in N s",
    ]
    at = ("align", 1)
    assert told(on_step=stop) == ["going on with orient after 1 of 2 steps"]
    assert told() == ["going on with align after 0 of 2 steps"]  # imitate, which it comes to itself, is not told
    assert told() == []


def test_another_recipe_in_the_same_folder_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_recipe(recipe, out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    longer = replace(recipe, seed=1, stages=(stage("orient", 3), *recipe.stages[1:]))
    named = r"out holds a run of another recipe: stages\.0\.tokens was 512\.0 and is 768\.0, seed was 0 and is 1$"
    with pytest.raises(OutputError) as refused:
        run_recipe(longer, out)
    assert re.search(named, refused.value.message)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_another_teacher_under_the_same_name_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(recipe.teacher, teacher)
    mine = replace(recipe, teacher=str(teacher))
    out = tmp_path / "out"
    run_recipe(mine, out)
    shutil.rmtree(out / "model")  # as if it had not been finished
    weights = bytearray((teacher / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (teacher / "model.safetensors").write_bytes(weights)
    with pytest.raises(OutputError, match="other weights"):
        run_recipe(mine, out)


def test_one_level_of_a_procedural_split_is_a_source(recipe: Recipe, tmp_path: Path) -> None:
    run_recipe(
        replace(recipe, data=replace(recipe.data, problems="tiny_train:2", held_out="tiny_val:2")), tmp_path / "a"
    )
    with pytest.raises(ProblemError, match="tiny_train:99"):
        run_recipe(replace(recipe, data=replace(recipe.data, problems="tiny_train:99")), tmp_path / "b")


def test_a_folder_of_somebody_else_is_refused_untouched(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        run_recipe(recipe, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        run_recipe(recipe, tmp_path / "thesis.tex")


@pytest.mark.parametrize(
    ("changes", "kind", "named"),
    [
        ({"teacher": "tinny"}, ModelError, "tinny"),
        ({"keep": (7,)}, ModelError, "layer 7"),
        ({"keep": (0, 1, 2)}, ModelError, "every layer"),
        ({"stages": ()}, ConfigError, "at least one stage"),
        ({"stages": (stage("align", lr=-1.0),)}, ConfigError, "lr is -1"),
        ({"stages": (stage("pretrain"),)}, ConfigError, "new_teacher"),
        ({"stages": (stage("pretrain"),), "new_teacher": TeacherConfig(heads=7)}, ConfigError, "heads"),
        ({"data": DataConfig(problems="nosuch")}, ThinkfastError, "nosuch"),
        ({"data": DataConfig(held_out="nosuch")}, ThinkfastError, "nosuch"),
        ({"data": DataConfig(difficulties=(99,))}, ThinkfastError, "99"),
        ({"data": DataConfig(pool=0)}, ConfigError, "data.pool is 0"),
        ({"eval_problems": 0}, ConfigError, "eval_problems is 0"),
    ],
)
def test_a_recipe_that_cannot_run_leaves_no_folder(
    changes: dict[str, Any], kind: type[Exception], named: str, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=named):
        run_recipe(replace(recipe, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missed_gate_stops_with_its_figure_every_time(recipe: Recipe, tmp_path: Path) -> None:
    stages = (recipe.stages[0], stage("align", gate=1e-6), recipe.stages[2])
    recipe = replace(recipe, stages=stages)
    seen: list[str] = []
    for _ in range(2):
        with pytest.raises(
            GateError, match=r"stage align failed its gate: align: layer error \d+\.\d+ \(gate <= 1e-06\)"
        ):
            run_recipe(recipe, tmp_path / "out", on_step=lambda e: seen.append(e.stage))
    assert seen == ["orient", "orient", "align", "align"]  # the second run only measures again
    assert not (tmp_path / "out" / "model").exists()
    assert not (tmp_path / "out" / "results.json").exists()


def test_met_gates_let_the_run_through(recipe: Recipe, tmp_path: Path) -> None:
    stages = (stage("orient", gate=4.0), stage("align", gate=1e6), stage("imitate", gate=0.0))
    result = run_recipe(replace(recipe, stages=stages), tmp_path / "out")
    assert all(g.passed and g.bound is not None for g in result.gates)


def test_stages_train_on_different_orders_of_the_text(recipe: Recipe, tmp_path: Path) -> None:
    run_recipe(replace(recipe, stages=(stage("align"), stage("align"))), tmp_path / "out")
    first, second = (
        [row["tokens"] for row in map(json.loads, text.splitlines())] for text in losses(tmp_path / "out").values()
    )
    assert first != second


def test_fine_tuning_is_judged_by_generating(recipe: Recipe, tmp_path: Path) -> None:
    result = run_recipe(replace(recipe, stages=(stage("imitate"), stage("sft")), eval_problems=1), tmp_path / "out")
    gate = result.gates[-1]
    assert gate.figure == "greedy accuracy, share of the teacher's"
    assert gate.value >= 0


@pytest.mark.parametrize(("teacher", "share"), [(0.8, 0.5), (0.0, 0.8)])
def test_a_students_accuracy_is_its_share_of_the_teachers(
    teacher: float, share: float, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy = {True: 0.4, False: teacher}
    monkeypatch.setattr("thinkfast.distill.run.generated_accuracy", lambda m, _: accuracy[m.spec.is_student])
    # A teacher that solves none of 2 problems counts as one that solves one: the share stays finite.
    with pytest.raises(GateError, match=rf"share of the teacher's {share}000 \(gate >= 0\.9\)"):
        run_recipe(replace(recipe, stages=(stage("sft", gate=0.9),)), tmp_path / "out")


def test_a_teacher_from_nothing(tmp_path: Path) -> None:
    sizes = TeacherConfig(d_model=24, layers=2, heads=4, kv_heads=2, d_ff=32, max_positions=512)
    data = DataConfig(pool=24, difficulties=(2,))
    recipe = Recipe("new", (stage("pretrain", 3),), new_teacher=sizes, data=data, eval_problems=1)
    result = run_recipe(recipe, tmp_path / "out")
    loaded = load_model(result.model_dir)
    assert not loaded.spec.is_student
    assert loaded.spec.n_kv_heads == 2
    assert result.gates[0].figure == "greedy accuracy"
    assert json.loads((tmp_path / "out" / "results.json").read_text())["teacher"] is None


def test_generated_accuracy_counts_right_answers(teacher_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from thinkfast.engine.llm import LLM

    problems = [Problem(str(i), f"What is {i} + 1?", str(i + 1), None, "test") for i in range(4)]
    replies: Callable[..., Any] = lambda self, prompts, params: [  # noqa: E731
        [type("Chain", (), {"text": f"The answer is \\boxed{{{'1' if i < 3 else '4'}}}."})] for i in range(len(prompts))
    ]
    monkeypatch.setattr(LLM, "generate", replies)
    assert generated_accuracy(load_model(teacher_dir), problems) == 0.5
