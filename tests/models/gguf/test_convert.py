"""A GGUF file becomes the checkpoint it was made from, and what cannot be one is refused by name before any work."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import GGUFParts, parts_of, random_model

from thinkfast.errors import ModelError
from thinkfast.models.attention import rope_frequencies
from thinkfast.models.decoder import Decoder
from thinkfast.models.gguf.convert import convert_gguf
from thinkfast.models.loading import Loaded, load_model
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import ModelSpec, RopeScaling

ARCHS = ("llama", "qwen2", "qwen3")


def converted(parts: GGUFParts, folder: Path) -> Loaded:
    path = parts.write(folder / "m.gguf")
    out = folder / "out"
    out.mkdir()
    convert_gguf(path, out, lambda text: None)
    return load_model(out)


def same_weights(ours: Decoder, theirs: Decoder) -> bool:
    other = theirs.state_dict()
    return all(torch.equal(t, other[name]) for name, t in ours.state_dict().items())


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_model_comes_back_bit_for_bit(arch: str, tied: bool, tmp_path: Path) -> None:
    model = random_model(arch, tie_embeddings=tied)
    loaded = converted(parts_of(model), tmp_path)
    assert loaded.spec == model.spec
    assert same_weights(loaded.model, model)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_stored_types(kind: str, tmp_path: Path) -> None:
    import gguf

    model = random_model("llama")
    parts = parts_of(model)
    name = "blk.1.ffn_down.weight"
    parts.types[name] = kind
    if kind in ("F16", "BF16"):
        parts.tensors[name] = np.round(parts.tensors[name] * 64) / 64  # what all of them hold exactly
    ggml = gguf.GGMLQuantizationType[kind]
    want = gguf.dequantize(gguf.quantize(parts.tensors[name], ggml), ggml)
    found = converted(parts, tmp_path).model.state_dict()["layers.1.mlp.down.weight"]
    assert torch.equal(found, torch.from_numpy(want).bfloat16().float())


def test_rows_of_q_and_k_are_put_back_for_llama_alone(tmp_path: Path) -> None:
    """A file of architecture llama whose rows were not interleaved gives another model, so the order is looked at."""
    model = random_model("llama")
    parts = parts_of(model)
    stock = parts.tensors["blk.0.attn_q.weight"].copy()
    q = model.state_dict()["layers.0.mixer.qkv.weight"][:64].numpy()
    assert not np.array_equal(stock, q)
    assert np.array_equal(stock[:4], q[[0, 8, 1, 9]])
    assert same_weights(converted(parts, tmp_path).model, model)


def test_an_embedding_held_twice_is_tied_and_the_finer_copy_serves_both(tmp_path: Path) -> None:
    import gguf

    model = random_model("qwen2", tie_embeddings=True)
    parts = parts_of(model)
    parts.tensors["output.weight"] = parts.tensors["token_embd.weight"]
    parts.types |= {"token_embd.weight": "Q4_1", "output.weight": "Q8_0"}
    loaded = converted(parts, tmp_path)
    assert loaded.spec.tie_embeddings
    q8 = gguf.GGMLQuantizationType.Q8_0
    finer = gguf.dequantize(gguf.quantize(parts.tensors["output.weight"], q8), q8)
    assert torch.equal(loaded.model.embed.weight, torch.from_numpy(finer).bfloat16().float())


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
def test_two_matrices_are_not_tied(kind: str, tmp_path: Path) -> None:
    """Also not one that is the other plus three times what its quantisation would explain."""
    model = random_model("llama", tie_embeddings=False)
    parts = parts_of(model)
    parts.types |= {"token_embd.weight": kind, "output.weight": kind}
    bits = {"F32": 8.0, "Q8_0": 8.5, "Q4_1": 5.0}[kind]
    noise = np.random.default_rng(0).standard_normal(parts.tensors["output.weight"].shape).astype(np.float32)
    parts.tensors["output.weight"] = parts.tensors["token_embd.weight"] + 0.7 * 3 * 2 ** (2 - bits) * noise
    assert not converted(parts, tmp_path).spec.tie_embeddings


def llama3_factors(scaling: RopeScaling, spec: ModelSpec) -> np.ndarray[Any, Any]:
    """As llama.cpp's converter computes them, element by element."""
    found = []
    for i in range(spec.head_dim // 2):
        wavelength = 2 * math.pi * spec.rope_theta ** (2 * i / spec.head_dim)
        if wavelength < scaling.original_max_positions / scaling.high_freq_factor:
            found.append(1.0)
        elif wavelength > scaling.original_max_positions / scaling.low_freq_factor:
            found.append(scaling.factor)
        else:
            smooth = scaling.original_max_positions / wavelength - scaling.low_freq_factor
            smooth /= scaling.high_freq_factor - scaling.low_freq_factor
            found.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(found, np.float32)


def test_rope_scaling_of_llama3_is_recognised(tmp_path: Path) -> None:
    scaling = RopeScaling(32.0, 1.0, 4.0, 8192)
    model = random_model("llama", rope_theta=500000.0, rope_scaling=scaling)
    parts = parts_of(model)
    parts.tensors["rope_freqs.weight"] = llama3_factors(scaling, model.spec)
    loaded = converted(parts, tmp_path)
    assert loaded.spec.rope_scaling == scaling
    plain = 500000.0 ** (-torch.arange(0, 16, 2) / 16)
    want = plain / torch.from_numpy(parts.tensors["rope_freqs.weight"])
    assert torch.allclose(rope_frequencies(loaded.spec), want, rtol=1e-5)


def test_numbers_are_the_ones_that_were_written(tmp_path: Path) -> None:
    config_of = tmp_path / "out" / "config.json"
    converted(parts_of(random_model("llama", norm_eps=1e-6, rope_theta=1e6)), tmp_path)
    assert json.loads(config_of.read_text())["rms_norm_eps"] == 1e-6
    assert json.loads(config_of.read_text())["rope_theta"] == 1e6


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"llama.expert_count": 8}, "expert_count = 8.*mixture of experts"),
    ("qwen2", {"qwen2.attention.sliding_window": 4096}, "sliding window"),
    ("llama", {"llama.rope.scaling.type": "yarn"}, "rope type 'yarn'"),
    ("llama", {"llama.rope.scaling.type": "linear"}, "rope type 'linear'"),
    ("llama", {"llama.rope.dimension_count": 8}, "rope.dimension_count = 8"),
    ("llama", {"llama.attention.causal": False}, "does not attend causally"),
    ("llama", {"llama.logit_scale": 0.5}, "llama.logit_scale = 0.5.*not known"),
    ("llama", {"llama.block_count": None}, "has no llama.block_count"),
    ("llama", {"llama.block_count": 3}, "missing model.layers.2"),
    ("llama", {"llama.attention.head_count": 8}, "has shape"),
    ("llama", {"llama.feed_forward_length": 128}, "has shape"),
    ("llama", {"llama.embedding_length": "wide"}, "metadata of the wrong type"),
    ("llama", {"tokenizer.ggml.tokens": None}, "carries no tokenizer"),
    ("llama", {"tokenizer.ggml.model": "llama"}, "tokenizer of kind 'llama'"),
    ("llama", {"tokenizer.ggml.pre": "tekken"}, "the rules of 'tekken'"),
    ("llama", {"tokenizer.ggml.eos_token_id": None}, "names no end token"),
    ("llama", {"tokenizer.ggml.eos_token_id": 264}, "the eos token 264 is none of the 264"),
    ("llama", {"tokenizer.ggml.bos_token_id": 999}, "the bos token 999"),
    ("llama", {"tokenizer.ggml.merges": ["x"]}, "'x' is no merge"),
    ("llama", {"tokenizer.ggml.merges": ["zz qq"]}, "merges do not fit"),
    ("llama", {"tokenizer.ggml.token_type": [1, 1]}, "token_type does not fit"),
    ("llama", {"tokenizer.chat_template": "{% if %}"}, "the chat template fails"),
    ("llama", {"tokenizer.chat_template": "<|lost|>{{ messages[0].content }}"}, r"'<\|lost\|>', which is no token"),
]


@pytest.mark.parametrize(("arch", "changes", "said"), REFUSED, ids=[said for _, _, said in REFUSED])
def test_refused_by_name(arch: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    parts = parts_of(random_model(arch))
    parts.metadata |= changes
    with pytest.raises(ModelError, match=said) as caught:
        converted(parts, tmp_path)
    assert caught.value.remedy
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arch", "said"),
    [("qwen2moe", "mixture of experts"), ("gemma2", "norms"), ("granitehybrid", "student"), ("clip", "not supported")],
)
def test_other_architectures(arch: str, said: str, tmp_path: Path) -> None:
    parts = parts_of(random_model("llama"))
    parts.metadata["general.architecture"] = arch
    with pytest.raises(ModelError, match=said):
        converted(parts, tmp_path)


def test_tokens_without_a_row(tmp_path: Path) -> None:
    parts = parts_of(random_model("llama", vocab_size=260))
    with pytest.raises(ModelError, match="the tokenizer has 264 tokens, the embedding 260 rows"):
        converted(parts, tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("blk.0.ffn_gate_inp.weight", "no place"),
        ("blk.0.attn_q.bias", "unused model.layers.0.self_attn.q_proj.bias"),
        ("blk.7.attn_norm.weight", "unused model.layers.7"),
    ],
)
def test_a_tensor_too_many(name: str, said: str, tmp_path: Path) -> None:
    parts = parts_of(random_model("llama"))
    parts.tensors[name] = np.zeros(64, np.float32)
    with pytest.raises(ModelError, match=said):
        converted(parts, tmp_path)


def test_a_tensor_too_few(tmp_path: Path) -> None:
    for i, (name, said) in enumerate((("blk.1.ffn_up.weight", "mlp.up_proj"), ("token_embd.weight", "token_embd"))):
        parts = parts_of(random_model("llama"))
        del parts.tensors[name]
        (tmp_path / str(i)).mkdir()
        with pytest.raises(ModelError, match=said):
            converted(parts, tmp_path / str(i))


def test_rope_factors_of_another_model(tmp_path: Path) -> None:
    parts = parts_of(random_model("llama"))
    parts.tensors["rope_freqs.weight"] = np.linspace(1, 8, 8).astype(np.float32)
    with pytest.raises(ModelError, match="rope_freqs"):
        converted(parts, tmp_path)


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    parts = parts_of(random_model("llama"))
    parts.tensors["blk.1.ffn_up.weight"][5, 7] = np.nan
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight holds values that are not finite"):
        converted(parts, tmp_path)


def test_tokens_survive(tmp_path: Path) -> None:
    loaded = converted(parts_of(random_model("llama")), tmp_path)
    tokens = loaded.tokenizer
    text = " the  12 é\n<think>日本"
    assert tokens.decode(tokens.encode(text)) == text
    names = [tokens._backend.id_to_token(i) for i in tokens.encode(" the  12<think>" + "<|im_end|>")]
    # smollm takes digits alone and before everything else: the two spaces stay one token, the merge "1 2" is never made
    assert names == ["Ġthe", "ĠĠ", "1", "2", "<think>", "<|im_end|>"]
    assert tokens.eos_ids == {1}
    assert tokens.decode(tokens.chat("hi")) == "user\nhi\nassistant\n"  # special tokens are left out of text
    assert (
        loaded.model(torch.tensor(tokens.chat("hi")), Ragged(torch.tensor([len(tokens.chat("hi"))]))).isfinite().all()
    )


@pytest.mark.parametrize(
    ("pre", "pieces"), [("qwen2", ["Ġ", "1", "2"]), ("llama-bpe", ["Ġ", "12"]), ("gpt-2", ["Ġ", "12"])]
)
def test_pre_tokenizers_group_digits_their_own_way(pre: str, pieces: list[str], tmp_path: Path) -> None:
    parts = parts_of(random_model("llama"))
    parts.metadata["tokenizer.ggml.pre"] = pre
    tokens = converted(parts, tmp_path).tokenizer
    assert [tokens._backend.id_to_token(i) for i in tokens.encode(" 12")] == pieces


@pytest.mark.parametrize("arch", ARCHS)
def test_transformers_reads_the_folder_as_we_do(arch: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    loaded = converted(parts_of(random_model(arch, tie_embeddings=False)), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(loaded.path, dtype=torch.float32).eval()
    reader = transformers.AutoTokenizer.from_pretrained(loaded.path)
    for text in (" the 12th  <think>", "x\n\n y 345", "ﬁ é"):
        assert loaded.tokenizer.encode(text) == reader(text, add_special_tokens=False)["input_ids"]
    messages = [{"role": "user", "content": "1 + 1?"}]
    prompt = reader.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert loaded.tokenizer.chat("1 + 1?") == prompt
    with torch.no_grad():
        want = theirs(input_ids=torch.tensor([prompt])).logits[0]
    ours = loaded.model.logits(loaded.model(torch.tensor(prompt), Ragged(torch.tensor([len(prompt)]))))
    assert float((ours - want).abs().max()) < 1e-4 * float(want.abs().max())
    assert theirs.generation_config.eos_token_id == [1]


def test_without_the_gguf_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    path = parts_of(random_model("llama")).write(tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match="gguf package") as caught:
        convert_gguf(path, tmp_path, lambda text: None)
    assert "thinkfast[gguf]" in caught.value.remedy
