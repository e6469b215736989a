"""Strict loading: whatever is wrong with a checkpoint, the error names it and no model comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from thinkfast.errors import InputError, ModelError
from thinkfast.models.loading import load_model

Save = Callable[..., Path]


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def reconfigure(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


STOCK = {
    "teacher": ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight", "model.embed_tokens.weight"],
    "hybrid": ["model.layers.1.self_attn.o_proj.weight", "model.layers.0.mamba.A_log", "model.layers.2.mamba.D"],
    "pure": ["model.layers.0.mamba.conv1d.bias", "model.layers.1.shared_mlp.input_linear.weight"],
}
TENSORS = [(kind, name) for kind, names in STOCK.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), TENSORS)
def test_missing_tensor(kind: str, name: str, saved: Save) -> None:
    with pytest.raises(ModelError, match=rf"missing {name}.*1 missing, 0 unused"):
        load_model(rewrite(saved(kind), lambda t: t.pop(name)))


def test_missing_embedding_beside_a_stored_head_is_not_blamed_on_the_tie(saved: Save) -> None:
    def move(t: dict[str, torch.Tensor]) -> None:
        t["lm_head.weight"] = t.pop("model.embed_tokens.weight")

    with pytest.raises(ModelError, match=r"missing model\.embed_tokens\.weight"):
        load_model(rewrite(saved(), move))


@pytest.mark.parametrize("kind", ["teacher", "hybrid", "pure"])
def test_extra_tensor(kind: str, saved: Save) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    with pytest.raises(ModelError, match=rf"unused {name}"):
        load_model(rewrite(saved(kind), lambda t: t.update({name: torch.zeros(48)})))


@pytest.mark.parametrize(("kind", "name"), TENSORS)
def test_wrong_shape(kind: str, name: str, saved: Save) -> None:
    with pytest.raises(ModelError, match=rf"{name} has shape"):
        load_model(rewrite(saved(kind), lambda t: t.update({name: t[name][:-1].clone()})))


def test_transposed_square_conv_is_a_wrong_shape(saved: Save) -> None:
    name = "model.layers.0.mamba.conv1d.weight"
    with pytest.raises(ModelError, match=rf"{name} has shape"):
        load_model(rewrite(saved("pure"), lambda t: t.update({name: t[name].squeeze(1)})))


def test_quantised_weights(saved: Save) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(ModelError, match=rf"{name} holds I8"):
        load_model(rewrite(saved(), lambda t: t.update({name: t[name].to(torch.int8)})))


@pytest.mark.parametrize("keep", [0.0, 1e-4, 0.02, 0.5, 0.9, -1])
def test_truncated_safetensors(keep: float, saved: Save) -> None:
    path = saved("hybrid") / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)] if keep >= 0 else data[:-1])
    with pytest.raises(ModelError, match=r"model\.safetensors is truncated or damaged"):
        load_model(path.parent)


def test_damaged_header(saved: Save) -> None:
    path = saved() / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[10:30] = b"\xff" * 20
    path.write_bytes(bytes(data))
    with pytest.raises(ModelError, match="truncated or damaged"):
        load_model(path.parent)


def test_missing_weights(saved: Save) -> None:
    folder = saved()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        load_model(folder)


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("teacher", {"num_hidden_layers": 4}, "model.layers.3"),
        ("teacher", {"num_hidden_layers": 2}, "unused model.layers.2"),
        (
            "teacher",
            {"intermediate_size": 41},
            r"gate_proj.weight has shape \(40, 48\), config.json implies \(41, 48\)",
        ),
        ("teacher", {"num_key_value_heads": 2}, "k_proj.weight has shape"),
        ("teacher", {"tie_word_embeddings": False}, "missing lm_head.weight"),
        ("teacher", {"vocab_size": 600}, "embed_tokens.weight has shape"),
        ("hybrid", {"layer_types": ["attention", "mamba", "mamba"]}, "model.layers.0.self_attn"),
        ("hybrid", {"mamba_d_state": 9}, "mamba.in_proj.weight has shape"),
        ("hybrid", {"mamba_proj_bias": True}, "in_proj.bias"),
        ("pure", {"mamba_d_conv": 3}, "conv1d.weight has shape"),
        ("pure", {"model_type": "llama"}, "self_attn|num_local_experts"),
    ],
)
def test_config_of_another_model(kind: str, changes: dict[str, Any], named: str, saved: Save) -> None:
    with pytest.raises(ModelError, match=named):
        load_model(reconfigure(saved(kind), **changes))


def test_untied_flag_that_lies(saved: Save) -> None:
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        load_model(reconfigure(saved("teacher", tie_embeddings=False), tie_word_embeddings=True))


def test_tokenizer_larger_than_the_embedding(saved: Save) -> None:
    with pytest.raises(ModelError, match="the tokenizer has 512 tokens, the embedding 500 rows"):
        load_model(saved(vocab_size=500))


def test_an_embedding_may_be_padded(saved: Save) -> None:
    assert load_model(saved(vocab_size=520)).spec.vocab_size == 520


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"llama"', "\x00", '{"model_type": "llama"'])
def test_config_that_is_no_config(text: str, saved: Save) -> None:
    folder = saved()
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_tokenizer_files_that_are_damaged(name: str, saved: Save) -> None:
    folder = saved()
    (folder / name).write_text((folder / name).read_text()[:50])
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load_model(folder)


def test_missing_tokenizer(saved: Save) -> None:
    folder = saved()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        load_model(folder)


@pytest.mark.parametrize(
    ("typo", "meant"), [("tiny-hybird", "tiny-hybrid"), ("tinny", "tiny"), ("tiny_pure", "tiny-pure")]
)
def test_unknown_name_gets_a_suggestion(typo: str, meant: str) -> None:
    with pytest.raises(ModelError, match=f"unknown model '{typo}'") as caught:
        load_model(typo)
    assert f"did you mean '{meant}'" in caught.value.remedy


def test_unknown_name_far_from_all_lists_what_there_is() -> None:
    with pytest.raises(ModelError, match="unknown model 'gpt-9'") as caught:
        load_model("gpt-9")
    assert "did you mean" not in caught.value.remedy
    assert "tiny-hybrid" in caught.value.remedy


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model(tmp_path)


def shard(folder: Path, index: object) -> Path:
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, members in parts.items() for name in members}
    text = json.dumps({"weight_map": weight_map}) if index is None else json.dumps(index)
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def test_shards_load_like_one_file(saved: Save) -> None:
    folder = saved("hybrid")
    whole = load_model(folder).model.state_dict()
    parts = load_model(shard(folder, None)).model.state_dict()
    assert all(torch.equal(parts[name], t) for name, t in whole.items())


@pytest.mark.parametrize("index", [[], {}, {"weight_map": 3}, None], ids=str)
def test_shards_with_a_bad_index_or_a_missing_part(index: object, saved: Save) -> None:
    folder = shard(saved("hybrid"), index)
    (folder / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"b\.safetensors is missing" if index is None else r"index\.json"):
        load_model(folder)


def test_digest_follows_the_weights(saved: Save) -> None:
    folder = saved()
    first = load_model(folder).sha
    assert load_model(folder).sha == first
    rewrite(folder, lambda t: t["model.norm.weight"].add_(1))
    assert load_model(folder).sha != first


def test_a_failed_load_leaves_the_files_as_they_were(saved: Save) -> None:
    folder = reconfigure(saved("hybrid"), mamba_d_state=9)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(ModelError):
        load_model(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "dtype", "said"),
    [
        ("tiny", "bf16", "dtype is 'bf16'"),
        ("tiny", torch.int8, "dtype is torch.int8"),
        ("tiny", torch.float8_e4m3fn, "dtype is torch.float8"),
        (None, torch.float32, "the model is None"),
    ],
)
def test_what_is_no_dtype_or_no_name_is_refused(name: Any, dtype: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_model(name, dtype)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="'tpu' is no device"):
        load_model("tiny", device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no cuda device here"):
            load_model("tiny", device="cuda")


def test_a_student_loads_without_torchs_compiler() -> None:
    """Importing it takes a second or two, which would come out of a budget of seconds."""
    script = "import sys; from thinkfast.models.loading import load_model; load_model('tiny-pure')"
    script += "; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
