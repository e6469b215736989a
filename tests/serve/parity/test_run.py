"""The whole run on a small plan: every row is there, and one that cannot run says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from thinkfast.errors import InputError
from thinkfast.models.loading import load_model
from thinkfast.serve.parity import hf, peers
from thinkfast.serve.parity.report import Check
from thinkfast.serve.parity.run import Plan, missing, run_parity, stock_folder

SMALL = Plan(quick=True, prompts=2, new=4, few=1, steps=16)
ROWS = [
    "prefill, then step",
    "prefill, then step, fp64",
    "batch of one",
    "batch of one, fp64",
    "requests one by one",
    "fork of one prefill",
    "bf16 drift",
]


@pytest.mark.usefixtures("grouped_norm")
@pytest.mark.parametrize("kind", ["teacher", "hybrid"])
def test_every_row_is_there(kind: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    loaded = make(kind)
    seen: list[Check] = []
    report = run_parity(loaded, SMALL, seen.append)
    assert list(report.checks) == seen
    assert [c.name for c in seen] == [
        *ROWS,
        "logits",
        "greedy tokens",
        "greedy tokens, cached",
        *["log-probabilities"] * 2,
    ]
    assert [c.status for c in seen[-2:]] == ["not run", "not run"]
    assert "--vllm-python" in seen[-2].detail
    assert "--llama-python" in seen[-1].detail
    assert all(c.status == "passed" for c in seen[:-2] if c.name != "bf16 drift"), seen
    assert (report.sha, report.family, report.quick) == (loaded.sha, kind, True)
    assert report.curve
    assert report.provenance["versions"]


def test_a_wrong_transformers_is_a_reason_and_no_failure(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.granitemoehybrid.modeling_granitemoehybrid import GraniteMoeHybridRMSNormGated as Norm

    monkeypatch.setattr(Norm, "forward", lambda self, x, gate=None: x / x.pow(2).mean(-1, keepdim=True).sqrt())
    report = run_parity(make("pure"), SMALL)
    (row,) = [check for check in report.checks if check.against == hf.NAME]
    assert row.status == "not run"
    assert hf.REMEDY in row.detail
    assert missing(report.checks, ["transformers"]) == ["transformers"]


def test_a_model_llama_cpp_cannot_run_says_so(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.touch()
    report = run_parity(make("pure", qkv_bias=True), replace(SMALL, llama_python=python))
    (row,) = [check for check in report.checks if check.against == "llama.cpp"]
    assert row.status == "not run"
    assert "biases in Mamba projections" in row.detail


def test_what_is_refused_at_once(make: Any, tmp_path: Path) -> None:
    loaded = make("hybrid")
    with pytest.raises(InputError, match="no Python"):
        run_parity(loaded, replace(SMALL, vllm_python=tmp_path / "nothing"))
    with pytest.raises(InputError, match="fp32"):
        run_parity(load_model(loaded.path, torch.bfloat16), SMALL)


def test_a_model_without_a_folder_gets_one(make: Any) -> None:
    loaded = make("hybrid")
    with stock_folder(loaded) as folder:
        assert folder == loaded.path
    with stock_folder(replace(loaded, path=Path("nowhere"))) as folder:
        assert folder != loaded.path
        assert load_model(folder).sha == loaded.sha
    assert not folder.exists()


def test_required_programs() -> None:
    ran = Check("logits", "transformers 5.23.0", 0.0, 1.0, "", "")
    absent = Check("log-probabilities", "llama.cpp", None, 1.0, "", "")
    assert missing([ran, absent], ["transformers", "llama.cpp", "vllm"]) == ["llama.cpp", "vllm"]
    with pytest.raises(InputError, match="sglang"):
        missing([], ["sglang"])


def test_the_plans() -> None:
    full, quick = Plan.of(False, "gsm8k_test500"), Plan.of(True, "tiny_test")
    assert (full.prompts, full.new, full.steps) == (20, 64, 2000)
    assert quick.prompts * quick.new * quick.steps < 0.02 * full.prompts * full.new * full.steps
