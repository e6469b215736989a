"""A GGUF file read the way llama.cpp reads it computes what we compute; the real llama.cpp does, too (marked slow)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from thinkfast.data.problems import load_problems
from thinkfast.errors import ModelError, OutputError
from thinkfast.models.loading import Loaded, load_model
from thinkfast.models.spec import RopeScaling
from thinkfast.serve.gguf_model import write_gguf
from thinkfast.serve.parity import peers
from thinkfast.serve.parity.conditioning import Noise
from thinkfast.serve.parity.sample import draw_sample, our_logits

gguf = pytest.importorskip("gguf")
SCALING = RopeScaling(8.0, 1.0, 4.0, 64)


class AsLlamaCpp:
    """llama.cpp's granitehybrid and llama graphs in plain fp64, from the file's own names, shapes and fields."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.tensors: dict[str, Tensor] = {}
        for t in reader.tensors:
            data = gguf.quants.dequantize(t.data, t.tensor_type)
            self.tensors[t.name] = torch.from_numpy(np.array(data, dtype=np.float64)).reshape(
                *reversed(t.shape.tolist())
            )
        self.fields = {name: field.contents() for name, field in reader.fields.items()}
        self.arch = self.fields["general.architecture"]
        self.eps = self.field("attention.layer_norm_rms_epsilon")

    def field(self, name: str) -> Any:
        return self.fields[f"{self.arch}.{name}"]

    def logits(self, tokens: list[int]) -> Tensor:
        t = self.tensors
        x = t["token_embd.weight"][tokens]
        kv = self.field("attention.head_count_kv")
        for i in range(self.field("block_count")):
            layer = {name.split(".", 2)[2]: v for name, v in t.items() if name.startswith(f"blk.{i}.")}
            u = self.norm(x, layer["attn_norm.weight"])
            heads = kv[i] if isinstance(kv, list) else kv
            x = x + (self.attention(u, layer, heads) if heads else self.mamba(u, layer))
            u = self.norm(x, layer["ffn_norm.weight"])
            hidden = F.silu(u @ layer["ffn_gate.weight"].T) * (u @ layer["ffn_up.weight"].T)
            x = x + hidden @ layer["ffn_down.weight"].T
        return self.norm(x, t["output_norm.weight"]) @ t.get("output.weight", t["token_embd.weight"]).T

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * weight

    def attention(self, u: Tensor, layer: dict[str, Tensor], kv: int) -> Tensor:
        p = self.field("attention.key_length")
        if self.arch == "granitehybrid":
            assert self.field("rope.scaling.finetuned") is True
            assert self.field("attention.scale") == pytest.approx(p**-0.5)
        q, k, v = (u @ layer[f"attn_{c}.weight"].T for c in "qkv")
        q, k, v = (x.view(len(u), -1, p).transpose(0, 1) for x in (q, k, v))
        assert (q.shape[0], k.shape[0]) == (self.field("attention.head_count"), kv)
        q, k = self.rope(q), self.rope(k)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=p**-0.5, enable_gqa=True)
        return o.transpose(0, 1).reshape(len(u), -1) @ layer["attn_output.weight"].T

    def rope(self, x: Tensor) -> Tensor:
        """The "normal" kind: neighbouring channels turn together."""
        p = self.field("rope.dimension_count")
        inverse = self.field("rope.freq_base") ** (-torch.arange(0, p, 2, dtype=torch.float64) / p)
        inverse = inverse / self.tensors.get("rope_freqs.weight", torch.ones(1))
        angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * inverse
        turned = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * torch.polar(torch.ones_like(angle), angle)
        return torch.view_as_real(turned).reshape(x.shape)

    def mamba(self, u: Tensor, layer: dict[str, Tensor]) -> Tensor:
        inner, states, heads = (self.field(f"ssm.{n}") for n in ("inner_size", "state_size", "time_step_rank"))
        assert inner == 2 * u.shape[1], "the loader asserts an expansion of two"
        assert self.field("ssm.group_count") == heads
        p, width = inner // heads, self.field("ssm.conv_kernel")
        z, xbc, dt = (u @ layer["ssm_in.weight"].T).split([inner, inner + 2 * heads * states, heads], -1)
        padded = F.pad(xbc, (0, 0, width - 1, 0))
        xbc = sum(padded[j : j + len(u)] * layer["ssm_conv1d.weight"][:, j] for j in range(width))
        xbc = F.silu(xbc + layer["ssm_conv1d.bias"])
        x, b, c = xbc.split([inner, heads * states, heads * states], -1)
        x, b, c = x.view(-1, heads, p), b.view(-1, heads, states), c.view(-1, heads, states)
        dt = F.softplus(dt + layer["ssm_dt.bias"])
        state, y = torch.zeros(heads, p, states, dtype=u.dtype), []
        for i in range(len(u)):
            state = state * (dt[i] * layer["ssm_a"][:, 0]).exp()[:, None, None]
            state = state + (dt[i, :, None] * x[i])[..., None] * b[i, :, None]
            y.append((state * c[i, :, None]).sum(-1) + layer["ssm_d"] * x[i])
        gated = torch.stack(y) * F.silu(z.view(-1, heads, p))
        return self.norm(gated, layer["ssm_norm.weight"]).reshape(len(u), inner) @ layer["ssm_out.weight"].T


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("teacher", {}),
        ("teacher", {"rope_theta": 500000.0, "rope_scaling": SCALING, "tie_embeddings": True, "norm_eps": 1e-3}),
        ("hybrid", {}),
        ("hybrid", {"rope_theta": 500000.0, "rope_scaling": SCALING, "tie_embeddings": True, "norm_eps": 1e-3}),
        ("hybrid", {"n_kv_heads": 4}),
        ("pure", {"n_kv_heads": 1}),
    ],
)
def test_the_file_computes_what_we_compute(kind: str, changes: dict[str, Any], make: Any, tmp_path: Path) -> None:
    loaded = make(kind, **changes)
    size = write_gguf(loaded, tmp_path / "m.gguf", torch.float32)
    assert size == (tmp_path / "m.gguf").stat().st_size
    tokens = torch.randint(5, 512, (40,)).tolist()
    theirs, ours = AsLlamaCpp(tmp_path / "m.gguf").logits(tokens), our_logits(loaded, tokens)
    assert float((theirs - ours).abs().max()) < 1e-4 * float(theirs.abs().max())
    assert float(theirs.std()) > 0.1


def test_a_pure_student_has_one_attention_layer_that_does_nothing(make: Any, tmp_path: Path) -> None:
    """Without a layer in its KV cache llama.cpp aborts."""
    loaded = make("pure")
    write_gguf(loaded, tmp_path / "m.gguf", torch.float32)
    read, layers = AsLlamaCpp(tmp_path / "m.gguf"), loaded.spec.n_layers
    assert read.field("attention.head_count_kv") == [0] * layers + [1]
    idle = {name: t for name, t in read.tensors.items() if name.startswith(f"blk.{layers}.")}
    assert {name for name, t in idle.items() if t.any()} == {f"blk.{layers}.{n}_norm.weight" for n in ("attn", "ffn")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matrices_are_narrow_where_asked_and_vectors_never(dtype: torch.dtype, make: Any, tmp_path: Path) -> None:
    loaded = make("hybrid", torch.bfloat16)
    write_gguf(loaded, tmp_path / "m.gguf", dtype)
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    narrow = {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    assert kinds["blk.0.ssm_in.weight"] == kinds["token_embd.weight"] == kinds["blk.1.attn_q.weight"] == narrow
    leaves = ("ssm_conv1d.weight", "ssm_conv1d.bias", "ssm_a", "ssm_d", "ssm_dt.bias", "ssm_norm.weight")
    assert {kinds[f"blk.0.{leaf}"] for leaf in (*leaves, "attn_norm.weight")} == {"F32"}
    if dtype == torch.bfloat16:  # the weights are bf16 to begin with
        tokens = list(range(5, 25))
        theirs = AsLlamaCpp(tmp_path / "m.gguf").logits(tokens)
        assert float((theirs - our_logits(loaded, tokens)).abs().max()) < 1e-4 * float(theirs.abs().max())


def test_the_vocabulary_comes_along(make: Any, tmp_path: Path) -> None:
    write_gguf(make("hybrid"), tmp_path / "m.gguf", torch.float32, name="my student")
    fields = AsLlamaCpp(tmp_path / "m.gguf").fields
    assert fields["general.name"] == "my student"
    assert len(fields["tokenizer.ggml.tokens"]) == fields["granitehybrid.vocab_size"] == 512
    assert fields["tokenizer.ggml.pre"] == "smollm"
    assert fields["tokenizer.ggml.eos_token_id"] == 4
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert "<|assistant|>" in fields["tokenizer.chat_template"]


def test_a_teacher_comes_back_with_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINKFAST_CACHE", str(tmp_path / "cache"))
    tiny = load_model("tiny")
    write_gguf(tiny, tmp_path / "m.gguf", torch.bfloat16)
    back = load_model(str(tmp_path / "m.gguf"))
    mine, theirs = tiny.model.state_dict(), back.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for text in ("There are 12 shells in the box.", "Zoë's naïve  façade\n\tcosts 1,000 $"):
        assert back.tokenizer.chat(text) == tiny.tokenizer.chat(text)


def test_what_llama_cpp_cannot_run_is_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="biases in Mamba projections"):
        write_gguf(make("pure", qkv_bias=True), tmp_path / "m.gguf", torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_an_output_error(make: Any, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        write_gguf(make("hybrid"), tmp_path / "no" / "m.gguf", torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["teacher", "hybrid", "pure"])
def test_llama_cpp_itself(kind: str, make: Any, tmp_path: Path) -> None:
    """Needs THINKFAST_LLAMA_PYTHON, a Python that has llama-cpp-python."""
    python = peers.find_python(peers.LLAMA_CPP, Path(p) if (p := os.environ.get("THINKFAST_LLAMA_PYTHON")) else None)
    if python is None:
        pytest.skip("llama-cpp-python is not here; name a Python that has it in THINKFAST_LLAMA_PYTHON")
    loaded: Loaded = make(kind)
    write_gguf(loaded, tmp_path / "m.gguf", torch.float32)
    # Of the tokenizer's own kind: a word that is not in its vocabulary llama.cpp may cut otherwise (docs/export.md).
    texts = [problem.question for problem in load_problems("tiny_val", 3)]
    chains = draw_sample(loaded, [loaded.tokenizer.chat(text) for text in texts], 12)
    checks = peers.against_peer(peers.LLAMA_CPP, python, tmp_path / "m.gguf", loaded, chains, texts, Noise(loaded))
    assert [(c.name, c.status) for c in checks] == [
        ("log-probabilities", "passed"),
        ("greedy tokens", "passed"),
        ("tokenizer", "passed"),
    ], checks
