"""Qwen2 and Qwen3 teachers, and GraniteMoeHybrid with attention alone: saved, loaded, transferred or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import random_model
from safetensors.torch import load_file, save_file

from thinkfast.errors import ModelError
from thinkfast.models.checkpoint import save_checkpoint
from thinkfast.models.loading import ASSETS, load_model
from thinkfast.models.ragged import Ragged
from thinkfast.models.stock_config import from_config, to_config
from thinkfast.models.transfer import plan_transfer

FAMILIES = ("qwen2", "qwen3", "granitemoehybrid")


def save_family(family: str, folder: Path, **changes: object) -> Path:
    return save_checkpoint(random_model(family, vocab_size=512, **changes), ASSETS / "tiny", folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded(family: str, tied: bool, tmp_path: Path) -> None:
    model = random_model(family, vocab_size=512, tie_embeddings=tied)
    loaded = load_model(save_checkpoint(model, ASSETS / "tiny", tmp_path))
    assert loaded.spec == model.spec
    weights = loaded.model.state_dict()
    assert all(torch.equal(weights[name], t) for name, t in model.state_dict().items())
    assert len(weights) == len(model.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = save_family(family, tmp_path)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours, tokens = load_model(folder).model, torch.randint(0, 512, (70,))
    want = theirs(input_ids=tokens[None], use_cache=False).logits[0]
    found = ours.logits(ours(tokens, Ragged(torch.tensor([70]))))
    assert float(want.std()) > 0.1
    assert float((found - want).abs().max()) < 2e-4 * float(want.abs().max())


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_what_transformers_saves_loads(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = save_family(family, tmp_path / "first")
    again = tmp_path / "again"
    transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).save_pretrained(again)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (again / name).write_bytes((folder / name).read_bytes())
    assert load_model(again).spec == load_model(folder).spec


@pytest.mark.parametrize("leaf", ["q_proj.bias", "k_proj.bias", "v_proj.bias"])
def test_a_bias_counts(leaf: str, tmp_path: Path) -> None:
    folder = save_family("qwen2", tmp_path)
    tokens, ragged = torch.arange(20), Ragged(torch.tensor([20]))
    before = load_model(folder).model(tokens, ragged)
    tensors = load_file(folder / "model.safetensors")
    bias = tensors[f"model.layers.0.self_attn.{leaf}"]
    bias += torch.randn(bias.shape)
    save_file(tensors, folder / "model.safetensors")
    assert not torch.allclose(load_model(folder).model(tokens, ragged), before, atol=1e-4)
    del tensors[f"model.layers.0.self_attn.{leaf}"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=rf"missing model\.layers\.0\.self_attn\.{leaf}"):
        load_model(folder)


def test_qwen3_is_a_teacher_in_the_engine_but_not_for_a_transfer(tmp_path: Path) -> None:
    spec = load_model(save_family("qwen3", tmp_path)).spec
    with pytest.raises(ModelError, match="qk-norm has no linear Q and K"):
        plan_transfer(spec, spec.as_student((), 8))


def test_qwen2_becomes_a_pure_student(tmp_path: Path) -> None:
    spec = load_model(save_family("qwen2", tmp_path)).spec
    student = spec.as_student((), 8)
    assert plan_transfer(spec, student).spec.ssm_bias
    assert from_config(to_config(student)) == student


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64}, "use_sliding_window is True.*sliding window"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "'sliding_attention'.*sliding window"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True"),
        ("qwen2", {"num_key_value_heads": None}, "wrong type"),
        ("qwen2", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        ("qwen2", {"rope_parameters": None, "rope_scaling": {"type": "mrope"}}, "rope type 'mrope'"),
        ("qwen2", {"use_mrope": True}, "use_mrope is True"),
        ("qwen2", {"rope_parameters": {"rope_theta": 1e4, "mrope_section": [1, 1]}}, "rope field 'mrope_section'"),
        (
            "llama",
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor is 0.5",
        ),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved is True"),
        ("llama", {"sliding_window": 4096}, "sliding_window is 4096"),
        ("llama", {"attn_logit_softcapping": 50.0}, "unknown field 'attn_logit_softcapping' = 50.0"),
        ("llama", {"rms_norm_epz": 1e-3}, "unknown field 'rms_norm_epz'.*did it mean 'rms_norm_eps'"),
        ("llama", {"num_experts": 8}, "num_experts = 8.*mixture of experts"),
        ("llama", {"num_local_experts": 4, "num_experts_per_tok": 2}, "mixture of experts"),
        ("qwen2", {"moe_intermediate_size": 8}, "mixture of experts"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ("llama", {"model_type": "qwen3_moe"}, "'qwen3_moe' is not supported: .*mixture of experts"),
        ("llama", {"model_type": "mistral"}, "'mistral' is not supported: .*sliding window"),
        ("llama", {"model_type": "gemma2"}, "'gemma2' is not supported: .*norms"),
        ("llama", {"model_type": "novel"}, "'novel' is not supported"),
    ],
    ids=str,
)
def test_refused_by_name(family: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = save_family(family, tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=said) as caught:
        load_model(folder)
    assert caught.value.remedy


@pytest.mark.parametrize("field", ["num_key_value_heads", "head_dim"])
def test_a_default_of_qwens_that_no_model_has_is_not_guessed(field: str, tmp_path: Path) -> None:
    folder = save_family("qwen3", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config[field]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=field):
        load_model(folder)


HARMLESS: dict[str, Any] = {
    "_name_or_path": "x",
    "is_llama_config": True,
    "rope_interleaved": False,
    "transformers.js_config": {"dtype": "q4"},
    "torch_dtype": "bfloat16",
    "pretraining_tp": 1,
    "unheard_of": None,
    "sliding_window": None,
}


def test_fields_of_published_models_that_change_nothing() -> None:
    config = to_config(random_model("llama").spec)
    assert from_config(config | HARMLESS) == from_config(config)
    qwen = to_config(random_model("qwen2").spec)
    published = {"sliding_window": 32768, "max_window_layers": 21, "use_sliding_window": False, "use_mrope": False}
    assert from_config(qwen | published) == from_config(qwen)


def test_every_default_field_of_transformers_is_known() -> None:
    """Whatever this version of transformers writes into a config of ours must not be refused as unknown."""
    transformers = pytest.importorskip("transformers")
    for family in ("llama", "qwen2", "qwen3"):
        config = to_config(random_model(family).spec)
        full = transformers.AutoConfig.for_model(**config).to_dict()
        assert from_config(json.loads(json.dumps(full))) == random_model(family).spec


def test_an_untied_flag_without_a_head_says_what_to_do(tmp_path: Path) -> None:
    folder = save_family("qwen2", tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": False}))
    with pytest.raises(ModelError, match=r"missing lm_head\.weight") as caught:
        load_model(folder)
    assert "tie_word_embeddings to true" in caught.value.remedy


def test_a_tied_head_that_is_stored_too_is_fine(tmp_path: Path) -> None:
    folder = save_family("qwen2", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    assert load_model(folder).spec.tie_embeddings


def test_a_bias_in_a_llama_names_the_way_out(tmp_path: Path) -> None:
    folder = save_family("llama", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="unused") as caught:
        load_model(folder)
    assert "qwen2" in caught.value.remedy


def test_a_tensor_in_two_files(saved: Callable[..., Path]) -> None:
    folder = saved()
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "other.safetensors")
    weight_map = dict.fromkeys(tensors, "model.safetensors") | {"model.norm.weight": "other.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match=r"is in both model\.safetensors and other\.safetensors"):
        load_model(folder)
