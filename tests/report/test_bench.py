from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from thinkfast.engine import runner as runner_module
from thinkfast.errors import CapacityError, InputError, ModelError
from thinkfast.models.checkpoint import save_checkpoint
from thinkfast.models.decoder import Decoder, init_weights
from thinkfast.models.loading import ASSETS, Loaded, load_model
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import ModelSpec
from thinkfast.report import bench as bench_module
from thinkfast.report import contestants
from thinkfast.report.bench import bench, present
from thinkfast.report.benchconfig import BenchConfig, Case
from thinkfast.report.contestants import Ours, Transformers, why_not_transformers
from thinkfast.report.roofline import Machine
from thinkfast.report.stepcurve import PROMPT, step_curves
from thinkfast.report.tables import bench_table

TEACHER = ModelSpec(512, 32, 2, 2, 16, 48, ("attention",) * 2, max_positions=512)
SPECS = {"teacher": TEACHER, "hybrid": TEACHER.as_student((1,), 8), "pure": TEACHER.as_student((), 8)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, spec in SPECS.items():
        model = Decoder(spec)
        init_weights(model, 0)
        save_checkpoint(model, ASSETS / "tiny", root / name)
    return {name: root / name for name in SPECS}


@pytest.fixture(scope="module")
def fast_machine() -> Iterator[None]:
    machine = Machine("made up", 1e11, ((1e6, 1e10),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_module, "machine_profile", lambda device, dtype: machine)
        patch.setattr(bench_module.Processors, "taken", lambda self: None)
        yield


def config(folders: dict[str, Path], **changes: Any) -> BenchConfig:
    models = tuple(f"{name}={path}" for name, path in folders.items())
    sizes: dict[str, Any] = {"batches": (3,), "prompt_tokens": (5,), "new_tokens": (4, 9), "repeats": 2}
    return BenchConfig(models, **(sizes | changes))


@pytest.fixture(scope="module")
def found(folders: dict[str, Path], fast_machine: None) -> dict[str, Any]:
    said: list[str] = []
    result = bench(config(folders), said.append, notes=["a note"])
    # The machine; two rounds of distinct prompts at 4 and 9 new tokens, of one prompt at both; two turns of curves.
    hybrids = why_not_transformers(SPECS["hybrid"]) is None
    assert len(said) == 1 + 2 * ((4 + hybrids) + 3 + 4 + 3) + 2 * 3
    return result


def test_everything_is_there_and_goes_into_json_and_report(found: dict[str, Any]) -> None:
    again = json.loads(json.dumps(found))
    assert {"machine", "versions", "commit", "threads", "load", "roofline", "config"} <= set(again)
    assert {(c["system"], c["engine"], c["new_tokens"]) for c in again["one_prompt"]} == {
        *((name, "thinkfast", new) for name in SPECS for new in (4, 9)),
        ("teacher", "transformers", 4),
    }
    cells = {(c["system"], c["engine"], c["new_tokens"]): c for c in again["throughput"]}
    ours = {(name, "thinkfast", new) for name in SPECS for new in (4, 9)}
    versions = tuple(int(part) for part in again["versions"]["transformers"].split(".")[:2])
    baselines = {("teacher", "transformers", 4), *([("hybrid", "transformers", 4)] if versions >= (5, 23) else [])}
    assert set(cells) == ours | baselines
    for (_, engine, new), cell in cells.items():
        for run in cell["runs"]:
            assert run["tokens"] == 3 * new
            assert run["steps"] == new - 1
            assert 0 < run["prefill_seconds"] + run["decode_seconds"] <= run["seconds"] * 1.001
        assert len(cell["runs"]) == 2
        assert cell["tokens_per_second"] == pytest.approx(
            statistics.median(3 * new / run["seconds"] for run in cell["runs"])
        )
        assert cell["bound_share"] == pytest.approx(cell["bound_ms_per_step"] / cell["ms_per_step"])
        assert (cell["plan_bytes"] is None) == (engine == "transformers")
        weights = 4 * sum(p.numel() for p in Decoder(SPECS[cell["system"]]).parameters())
        assert engine == "transformers" or cell["peak_bytes"] is None or cell["peak_bytes"] >= weights
    assert any("pure has no transformers baseline" in note for note in again["notes"])
    assert again["notes"][0] == "a note"
    table = bench_table({"bench": again})
    assert table is not None
    assert len(table.lines) == len(again["ratios"]) + len(again["break_even"])


def test_ratios_are_medians_of_neighbours_in_one_run(found: dict[str, Any]) -> None:
    runs = {(c["system"], c["engine"], c["new_tokens"]): c["runs"] for c in found["throughput"]}

    def ratio(slow: tuple[str, str, int], fast: tuple[str, str, int]) -> float:
        return statistics.median(a["seconds"] / b["seconds"] for a, b in zip(runs[slow], runs[fast], strict=True))

    teacher = ("teacher", "thinkfast", 9)
    assert found["student_vs_teacher"] == {
        name: pytest.approx(ratio(teacher, (name, "thinkfast", 9))) for name in ("hybrid", "pure")
    }
    assert found["engine_vs_transformers"]["teacher"] == pytest.approx(
        ratio(("teacher", "transformers", 4), ("teacher", "thinkfast", 4))
    )
    assert found["student_vs_teacher_one_prompt"].keys() == {"hybrid", "pure"}
    assert found["engine_vs_transformers_one_prompt"].keys() == {"teacher"}
    assert {r["wanted"] for r in found["ratios"]} == {None}  # nothing is promised at batch 3


def test_curves_and_break_even_cover_every_student(found: dict[str, Any]) -> None:
    for curve in found["step_curves"].values():
        assert curve["context"][0] > PROMPT
        assert curve["context"][-1] <= 5 + 9
        assert all(seconds > 0 for seconds in curve["seconds"])
    assert [each["student"] for each in found["break_even"]] == ["hybrid", "pure"]
    wanted = {f"{how}_{what}" for how in ("predicted", "measured") for what in ("tokens", "context")}
    assert all(wanted <= set(each) for each in found["break_even"])


def test_no_baseline_no_curve_no_teacher(folders: dict[str, Path], fast_machine: None) -> None:
    alone = bench(config({"pure": folders["pure"]}, new_tokens=(2,), repeats=1, against="none", curve=False))
    assert [cell["engine"] for cell in alone["throughput"]] == ["thinkfast"]
    assert (alone["ratios"], alone["break_even"], alone["student_vs_teacher"]) == ([], [], {})


@pytest.mark.parametrize("kind", ["teacher", "hybrid"])
def test_the_baseline_runs_the_same_weights_on_the_same_terms(folders: dict[str, Path], kind: str) -> None:
    loaded = load_model(folders[kind])
    if why := why_not_transformers(loaded.spec):
        pytest.skip(why)
    baseline = Transformers(kind, loaded)
    prompts = torch.randint(0, 512, (4, 7), generator=torch.Generator().manual_seed(1)).tolist()
    logits = baseline._model(torch.tensor(prompts)).logits
    ours = loaded.model.logits(loaded.model(torch.tensor(prompts).flatten(), Ragged(torch.full((4,), 7))))
    assert torch.allclose(logits.flatten(0, 1), ours, atol=1e-4)
    timing = baseline.run(prompts, 6)
    assert (timing.tokens, timing.steps) == (24, 5)
    assert baseline.run(prompts[:1], 6, samples=3).tokens == 18
    assert 0 < timing.prefill_seconds < timing.seconds


def test_the_baseline_gets_no_filters_and_no_early_end(folders: dict[str, Path]) -> None:
    baseline = Transformers("teacher", load_model(folders["teacher"]))
    seen: dict[str, Any] = {}
    generate = baseline._model.generate

    def spy(ids: torch.Tensor, **given: Any) -> torch.Tensor:
        seen.update(given["generation_config"].to_dict())
        return generate(ids, **given)

    baseline._model.generate = spy
    baseline.run([[1, 2, 3]], 5)
    assert (seen["do_sample"], seen["temperature"], seen["top_k"], seen["top_p"]) == (True, 1.0, 0, 1.0)
    assert seen["min_new_tokens"] == seen["max_new_tokens"] == 5


def test_old_transformers_and_pure_students_have_no_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, hybrid in (("5.22.1", "5.22.1 computes the gated norm without groups"), ("5.23.0", None)):
        monkeypatch.setattr(contestants.metadata, "version", lambda name, version=version: version)
        assert why_not_transformers(TEACHER) is None
        assert "cached generate raises" in str(why_not_transformers(SPECS["pure"]))
        found = why_not_transformers(SPECS["hybrid"])
        assert found is None if hybrid is None else str(found).startswith(hybrid)


def test_weights_that_give_nan_are_an_error_not_a_speed(folders: dict[str, Path]) -> None:
    loaded = load_model(folders["teacher"])
    loaded.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="forced: its logits are not finite"):
        Ours("broken", loaded, 2, 20).run([[1, 2], [3, 4]], 5)


def test_curves_time_every_context_once_a_turn(folders: dict[str, Path]) -> None:
    models: dict[str, Loaded] = {name: load_model(path) for name, path in folders.items()}
    said: list[str] = []
    curves = step_curves(models, batch=2, longest=PROMPT + 17, turns=2, say=said.append)
    assert [text.split(":")[0] for text in said] == [*SPECS, *SPECS]
    for curve in curves.values():
        # The first of 17 new tokens is the fork's: 16 steps in 8 windows of two, contexts PROMPT + 1 .. PROMPT + 16.
        assert curve.context == tuple(PROMPT + 1.5 + 2 * i for i in range(8))


@pytest.mark.gpu
def test_curves_on_a_gpu_need_no_page_more_than_planned(tmp_path: Path) -> None:
    """Pages are taken when a row enters, for all its tokens, and 128 tokens fill two of them."""
    spec = ModelSpec(512, 64, 4, 2, 16, 96, ("attention",) * 2, max_positions=512)
    models = {}
    for name, one in (("teacher", spec), ("hybrid", spec.as_student((1,), 16))):
        model = Decoder(one)
        init_weights(model, 0)
        save_checkpoint(model, ASSETS / "tiny", tmp_path / name)
        models[name] = load_model(tmp_path / name, torch.bfloat16, "cuda")
    curves = step_curves(models, batch=5, longest=128, turns=2)
    assert all(min(curve.seconds) > 0 for curve in curves.values())


def test_the_promise_is_that_of_the_issue() -> None:
    bench_config = BenchConfig()
    cases = list(bench_config.cases())
    assert cases == [Case(64, 64, new, shared) for shared in (False, True) for new in (256, 512)]
    assert [bench_config.wanted("engine_vs_transformers", case) for case in cases] == [3.0, 3.0, None, None]
    assert [bench_config.wanted("student_vs_teacher", case) for case in cases] == [None, 1.5, None, None]
    assert bench_config.wanted("student_vs_teacher", Case(16, 64, 512)) is None


def test_the_grid_has_every_combination_once() -> None:
    grid = BenchConfig(
        batches=(2,), prompts=("distinct",), prompt_tokens=(8, 16, 8), new_tokens=(4, 5), states=("bf16", "fp8"),
        device="cuda",
    )  # fmt: skip
    grid.validate()
    cases = list(grid.cases())
    assert len(cases) == len(set(cases)) == 8
    assert {(c.prompt, c.new, c.state) for c in cases} == {
        (p, n, s) for p in (8, 16) for n in (4, 5) for s in grid.states
    }
    assert grid.longest == 21
    assert str(cases[0]) == "batch 2, prompts of 8, 4 new tokens, states in bf16"
    with pytest.raises(InputError, match="keeps states in fp32"):
        BenchConfig(states=("bf16",)).validate()
    with pytest.raises(InputError, match="state is 'int8'"):
        replace(grid, states=("int8",)).validate()  # type: ignore[arg-type]
    with pytest.raises(InputError, match="fp8 to run against"):
        BenchConfig(dtype="fp8").validate()


@pytest.mark.parametrize(("taken", "told"), [(None, False), (0.1, False), (0.9, True)])
def test_a_machine_that_others_use_is_told(
    taken: float | None, told: bool, folders: dict[str, Path], fast_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_module.Processors, "taken", lambda self: taken)
    one = {"pure": folders["pure"]}
    found = bench(config(one, against="none", curve=False, prompts=("distinct",), repeats=1))
    assert any("something else had 0.9 of" in note for note in found["notes"]) is told


@pytest.mark.parametrize(("rate", "told"), [(1e10, False), (1.0, True)])
def test_a_share_above_the_bound_is_explained(
    rate: float, told: bool, folders: dict[str, Path], fast_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_module, "machine_profile", lambda device, dtype: Machine("slow", 1e11, ((1e6, rate),)))
    one = {"pure": folders["pure"]}
    found = bench(config(one, against="none", curve=False, prompts=("distinct",), repeats=1))
    assert (found["throughput"][0]["bound_share"] > 1) is told
    assert any("above 100% means that the machine was slower" in note for note in found["notes"]) is told


def test_a_grid_is_planned_for_the_states_that_take_most() -> None:
    assert BenchConfig().widest_state is None
    assert BenchConfig(states=("fp8",)).widest_state == torch.float8_e4m3fn
    assert BenchConfig(states=("bf16", "fp32", "fp8")).widest_state == torch.float32


def test_a_shared_prompt_is_read_once() -> None:
    assert Case(64, 64, 255).context == 64 + 128
    assert Case(64, 64, 255, shared=True).context == 1 + 128
    assert list(BenchConfig(batches=(1,), new_tokens=(2,)).cases()) == [Case(1, 64, 2)]
    assert list(BenchConfig(batches=(1,), new_tokens=(2,), prompts=("one",)).cases()) == [Case(1, 64, 2, shared=True)]


def test_samples_of_one_prompt_are_prefilled_once(folders: dict[str, Path]) -> None:
    ours = Ours("teacher", load_model(folders["teacher"]), batch=4, longest=80)
    timing = ours.run([[1, 2, 3]], 5, samples=4)
    assert (timing.tokens, timing.steps, ours.llm.stats.prefill_tokens) == (20, 4, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batches": (4, 0)}, "batch is 0"),
        ({"new_tokens": (-1,)}, "new is -1"),
        ({"new_tokens": ()}, "no --new is given"),
        ({"prompt_tokens": (0,)}, "prompt is 0"),
        ({"prompts": ()}, "prompts is 0"),
        ({"prompts": ("two",)}, "prompts is 'two'"),
        ({"repeats": 0}, "repeats is 0"),
        ({"against": "vllm"}, "cannot bench against 'vllm'"),
        ({"models": ()}, "no model"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 10**30}, "seed is 10{30}"),
        ({"prompt_tokens": (500,), "new_tokens": (13,)}, "come to 513, and teacher was made for 512 positions"),
    ],
)
def test_mistakes_are_explained_before_anything_runs(
    folders: dict[str, Path], changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> Machine:
        raise AssertionError("the machine was measured")

    monkeypatch.setattr(bench_module, "machine_profile", never)
    base = config(folders)
    with pytest.raises(InputError, match=words):
        bench(replace(base, **changes))


def test_a_grid_that_does_not_fit_is_refused_with_its_plan(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "available_memory", lambda device: 1000)
    with pytest.raises(CapacityError, match="does not fit in memory") as refused:
        bench(config(folders))
    assert "shorter chains" in refused.value.remedy  # --new and --prompt; max_len is no option of bench's


def test_missing_embedded_students_are_left_out_with_a_note() -> None:
    kept, notes = present(("tiny", "tiny-hybrid", "some/folder"))
    there = (ASSETS / "tiny-hybrid" / "model.safetensors").is_file()
    assert kept == (("tiny", "tiny-hybrid", "some/folder") if there else ("tiny", "some/folder"))
    assert notes == ([] if there else ["tiny-hybrid is not there: left out"])
