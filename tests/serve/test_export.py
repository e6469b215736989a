"""An export is whole or absent, loads back as what it was, and runs in transformers with no options given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from thinkfast.errors import InputError, OutputError
from thinkfast.models.loading import Loaded, load_model
from thinkfast.serve.export import export_hf
from thinkfast.serve.parity.hf import REMEDY, quiet
from thinkfast.serve.parity.report import Check, ParityReport
from thinkfast.serve.parity.sample import draw_sample

KINDS = ("teacher", "hybrid", "pure")
CHECK = Check("logits", "another program", 1e-5, 2e-4, "", "3 positions")


def report(sha: str, *checks: Check) -> ParityReport:
    return ParityReport("m", sha, "hybrid", 1, True, "tiny_test", checks or (CHECK,), ((1, 0.1, 0.1),), {})


def same(a: Loaded, b: Loaded) -> bool:
    ours, theirs = a.model.state_dict(), b.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[name]) for name, t in ours.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_an_export_loads_back_bit_for_bit_and_folded(kind: str, stored: torch.dtype, make: Any, tmp_path: Path) -> None:
    source = make(kind, stored)
    again = load_model(export_hf(source, tmp_path / "out"))
    assert again.spec == source.spec
    assert same(source, again)
    if kind != "teacher":
        assert again.spec.ssm_kv_heads == 2  # compact, though the file repeats x and B for four heads
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == str(stored).removeprefix("torch.")


def test_bf16_rounds_once_and_for_all(make: Any, tmp_path: Path) -> None:
    source = make("hybrid")
    out = export_hf(source, tmp_path / "half", "bf16")
    again = load_model(out)
    rounded = {name: t.bfloat16().float() for name, t in source.model.state_dict().items()}
    assert all(torch.equal(t, rounded[name]) for name, t in again.model.state_dict().items())
    assert same(again, load_model(export_hf(again, tmp_path / "again")))
    assert (out / "model.safetensors").stat().st_size < 0.6 * (source.path / "model.safetensors").stat().st_size


@pytest.mark.usefixtures("grouped_norm")
@pytest.mark.parametrize("kind", KINDS)
def test_it_runs_in_transformers_as_it_stands(kind: str, make: Any, tmp_path: Path) -> None:
    import transformers

    source = make(kind)
    out = export_hf(source, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    messages = [{"role": "user", "content": "Tom has 3 apples."}]
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    inputs = tokenizer.apply_chat_template(messages, **options)
    prompt = source.tokenizer.chat("Tom has 3 apples.")
    assert inputs["input_ids"][0].tolist() == prompt
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
        answer = model.generate(**{k: inputs[k] for k in ("input_ids", "attention_mask")}, max_new_tokens=8)
    said = answer[0, len(prompt) :].tolist()
    (chain,) = draw_sample(source, [prompt], 8)
    assert chain.tokens[: len(said)] == tuple(said)
    assert len(said) == 8 or said[-1] in source.tokenizer.eos_ids


def test_what_lies_in_the_folder(make: Any, tmp_path: Path) -> None:
    for kind, cached in (("hybrid", True), ("pure", False)):
        out = export_hf(make(kind), tmp_path / kind)
        names = {path.name for path in out.iterdir()}
        assert names == {
            *("README.md", "chat_template.jinja", "config.json", "generation_config.json"),
            *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        }
        generation = json.loads((out / "generation_config.json").read_text())
        assert generation == {"bos_token_id": 1, "eos_token_id": 4, "pad_token_id": 0, "use_cache": cached}
        assert json.loads((out / "config.json").read_text())["use_cache"] is cached


def test_a_generation_config_of_the_source_is_kept(make: Any, tmp_path: Path) -> None:
    source = make("hybrid")
    (source.path / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": [4, 7]}')
    out = export_hf(load_model(source.path), tmp_path / "out")
    found = json.loads((out / "generation_config.json").read_text())
    assert found == {
        "bos_token_id": 1,
        "pad_token_id": 0,
        "eos_token_id": [4, 7],
        "temperature": 0.6,
        "use_cache": True,
    }
    assert load_model(out).tokenizer.eos_ids == {4, 7}


def test_a_template_inside_the_tokenizer_config_becomes_a_file(make: Any, tmp_path: Path) -> None:
    source = make("hybrid")
    config_path, template = source.path / "tokenizer_config.json", source.path / "chat_template.jinja"
    config = json.loads(config_path.read_text()) | {"chat_template": template.read_text()}
    config_path.write_text(json.dumps(config))
    template.unlink()
    out = export_hf(load_model(source.path), tmp_path / "out")
    assert (out / "chat_template.jinja").read_text() == config["chat_template"]


def test_a_taken_place_is_refused(make: Any, tmp_path: Path) -> None:
    source, out = make("hybrid"), tmp_path / "out"
    export_hf(source, out)
    with pytest.raises(OutputError, match="already exists"):
        export_hf(source, out)
    (out / "parity.json").touch()
    export_hf(source, out, "bf16", overwrite=True)
    assert not (out / "parity.json").exists()
    (out / "notes.txt").touch()
    with pytest.raises(OutputError, match="also holds notes.txt"):
        export_hf(source, out, overwrite=True)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "letters.txt").touch()
    with pytest.raises(OutputError, match="no checkpoint"):
        export_hf(source, other, overwrite=True)
    assert (other / "letters.txt").exists()


def test_a_failure_leaves_nothing(make: Any, tmp_path: Path) -> None:
    def fail(_: Loaded) -> ParityReport:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_hf(make("hybrid"), tmp_path / "out", parity=fail)
    assert list(tmp_path.iterdir()) == []


def test_parity_is_made_of_the_export_or_must_be_of_these_weights(make: Any, tmp_path: Path) -> None:
    source = make("hybrid")
    seen: list[Loaded] = []

    def measure(made: Loaded) -> ParityReport:
        seen.append(made)
        return report(made.sha)

    out = export_hf(source, tmp_path / "a", "bf16", measure)
    assert seen[0].name == "a"
    assert same(seen[0], load_model(out))
    written = ParityReport.from_json(json.loads((out / "parity.json").read_text()))
    assert written == report(load_model(out).sha)
    export_hf(source, tmp_path / "b", parity=report(source.sha))
    with pytest.raises(InputError, match="other weights"):
        export_hf(source, tmp_path / "c", parity=report("0" * 64))
    assert not (tmp_path / "c").exists()


def test_an_unknown_dtype_is_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fp8"):
        export_hf(make("hybrid"), tmp_path / "out", "fp8")


def test_the_card_says_what_there_is(make: Any, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    broken = replace(CHECK, name="greedy tokens", value=3.0, bound=0.0)
    absent = replace(CHECK, against="vLLM", value=None, detail="not installed | here")
    hybrid = make("hybrid")
    out = export_hf(hybrid, tmp_path / "mine", parity=report(hybrid.sha, CHECK, broken, absent))
    text = (out / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: transformers\n")
    assert "attention kept in layer 1 of 3" in text
    assert REMEDY in text
    assert "**A bound is broken**" in text
    assert "| logits | another program | 1e-05  | ≤ 2e-04 | passed | 3 positions |" in text
    assert "| not run | not installed \\| here |" in text
    assert load_model(out).sha in text
    assert "None was given at export" in text
    pure = (export_hf(make("pure"), tmp_path / "pure") / "README.md").read_text()
    assert "use_cache: false" in pure
    assert "Not measured at export" in pure
    teacher = (export_hf(make("teacher"), tmp_path / "teacher") / "README.md").read_text()
    assert REMEDY not in teacher
    assert "\n\n\n" not in text + pure + teacher


def test_the_card_carries_the_evaluation_of_these_weights(make: Any, tmp_path: Path) -> None:
    from thinkfast.report.evaluate import EvalConfig, evaluate
    from thinkfast.serve.card import read_evaluation

    source = make("hybrid")
    config = EvalConfig(models=(str(source.path),), problems="tiny_test", limit=2, n=2, max_tokens=8, max_batch=4)
    evaluate(config, tmp_path / "eval")
    evaluation = read_evaluation(tmp_path / "eval")
    text = (export_hf(source, tmp_path / "out", evaluation=evaluation) / "README.md").read_text()
    assert "2 problems of tiny_test" in text
    assert "### All systems" in text
    assert "| maj@n |" in text
    with pytest.raises(InputError, match="other weights"):
        export_hf(make("pure"), tmp_path / "other", evaluation=evaluation)
