"""`thinkfast parity` and `thinkfast export` as commands: exit codes, files, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from thinkfast.cli import build_app
from thinkfast.models.checkpoint import save_checkpoint
from thinkfast.models.decoder import Decoder, init_weights
from thinkfast.models.loading import ASSETS, load_model
from thinkfast.models.spec import ModelSpec
from thinkfast.serve.parity import run as running
from thinkfast.serve.parity.report import Check, ParityReport
from thinkfast.serve.parity.run import Plan

SMALL = Plan(quick=True, prompts=2, new=4, few=1, steps=16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = ModelSpec(512, 32, 4, 2, 8, 48, ("attention",) * 2, max_positions=512).as_student((1,), 4)
    decoder = Decoder(spec)
    init_weights(decoder, 0)
    return save_checkpoint(decoder, ASSETS / "tiny", tmp_path_factory.mktemp("models") / "small", torch.float32)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "of", lambda *_, **__: SMALL)


def thinkfast(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


def test_parity_prints_a_table_and_writes_json(model: Path, tmp_path: Path) -> None:
    done = thinkfast("parity", model, "--quick", "--out", tmp_path / "results", "--json", tmp_path / "a.json")
    assert done.exit_code == 0, done.output
    for words in ("prefill, then step", "fork of one prefill", "transformers 5.", "parity holds", "not run: "):
        assert words in done.output
    # Nobody sees the table grow here, so every row is told as it is there.
    rows = [line for line in done.stderr.splitlines() if line.startswith("parity: ")]
    assert rows[0].startswith("parity: prefill, then step with one parallel pass: ")
    assert ", passed, " in rows[0]
    one, other = (tmp_path / name for name in ("a.json", "results/parity-small.json"))
    assert one.read_text() == other.read_text()
    assert ParityReport.from_json(json.loads(one.read_text())).sha == load_model(model).sha


def test_a_model_without_a_checkpoint_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    done = thinkfast("parity", "random:smollm2-135m", "--out", tmp_path / "results")
    assert done.exit_code == 2
    assert "no checkpoint" in done.output
    assert not list(tmp_path.iterdir())


def test_the_drift_can_be_as_short_as_asked(model: Path, tmp_path: Path) -> None:
    done = thinkfast("parity", model, "--steps", "9", "--json", tmp_path / "a.json")
    assert done.exit_code == 0, done.output
    report = ParityReport.from_json(json.loads((tmp_path / "a.json").read_text()))
    assert next(c for c in report.checks if c.name == "bf16 drift").detail.startswith("9 steps: ")
    assert thinkfast("parity", model, "--steps", "0").exit_code == 2


def test_a_broken_bound_is_exit_code_one(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = running.run_parity

    def broken(loaded: object, plan: Plan, on_check: object) -> ParityReport:
        report = real(loaded, plan, on_check)  # type: ignore[arg-type]
        worse = Check("logits", "transformers 5.23.0", 0.5, 2e-4, "", "")
        return replace(report, checks=(*report.checks, worse))

    monkeypatch.setattr(running, "run_parity", broken)
    done = thinkfast("parity", model, "--json", tmp_path / "a.json")
    assert done.exit_code == 1
    assert "broken: logits against transformers 5.23.0" in done.output
    assert json.loads((tmp_path / "a.json").read_text())["ok"] is False


def test_a_required_program_that_is_absent_is_exit_code_one(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinkfast.serve.parity.peers.find_spec", lambda name: None)
    done = thinkfast("parity", model, "--require", "vllm")
    assert done.exit_code == 1
    assert "required, but not run: vllm" in done.output
    unknown = thinkfast("parity", model, "--require", "sglang")
    assert unknown.exit_code == 2


def test_export_to_hf_measures_parity_for_its_card(model: Path, tmp_path: Path) -> None:
    done = thinkfast("export", model, tmp_path / "out", "--to", "hf", "--dtype", "bf16")
    assert done.exit_code == 0, done.output
    assert "| prefill, then step | one parallel pass |" in (tmp_path / "out/README.md").read_text()
    report = tmp_path / "out" / "parity.json"
    again = thinkfast("export", tmp_path / "out", tmp_path / "again", "--parity", report)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again/parity.json").read_text() == report.read_text()
    wrong = thinkfast("export", model, tmp_path / "wrong", "--parity", report)
    assert wrong.exit_code == 2
    assert not (tmp_path / "wrong").exists()
    plain = thinkfast("export", model, tmp_path / "plain", "--no-parity")
    assert plain.exit_code == 0
    assert not (tmp_path / "plain/parity.json").exists()


def test_export_to_gguf(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    out = tmp_path / "small.gguf"
    done = thinkfast("export", model, out, "--to", "gguf")
    assert done.exit_code == 0, done.output
    assert out.read_bytes()[:4] == b"GGUF"
    again = thinkfast("export", model, out, "--to", "gguf")
    assert again.exit_code == 2
    assert thinkfast("export", model, out, "--to", "gguf", "--overwrite", "--dtype", "bf16").exit_code == 0
    assert thinkfast("export", model, tmp_path, "--to", "gguf").exit_code == 2
    assert thinkfast("export", model, tmp_path / "x.gguf", "--to", "gguf", "--eval", tmp_path).exit_code == 2


def test_files_that_are_no_reports_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    for name in ("bad.json", "none.json"):
        done = thinkfast("export", model, tmp_path / "out", "--parity", tmp_path / name)
        assert done.exit_code == 2
    assert thinkfast("export", model, tmp_path / "out", "--eval", tmp_path / "nothing").exit_code == 2
    assert not (tmp_path / "out").exists()
