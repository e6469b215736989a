"""A GGUF file's tensors as the stock tensors of Llama, Qwen2 or Qwen3: dequantised, renamed, rows put back in order.

Legend: H heads, P head dim.

Two things differ from the stock layout. llama.cpp rotates neighbouring channels where transformers rotates halves, so
files of architecture llama have the rows of q and k interleaved per head. And a model with tied embeddings may hold
them twice at different precision: then the finer copy serves as both (FACTS.md, section 2).

Usage: ``weights = GGUFWeights.open(file, tied=is_tied(file)); weights.shapes; weights.read("model.norm.weight")``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thinkfast.errors import ModelError
from thinkfast.models.checkpoint import EMBED, FINAL_NORM, HEAD
from thinkfast.models.gguf.header import GGUFFile, TensorEntry, require_gguf

TOKENS, OUTPUT, ROPE = "token_embd.weight", "output.weight", "rope_freqs.weight"
_TOP = {TOKENS: EMBED, OUTPUT: HEAD, "output_norm.weight": FINAL_NORM}
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROWS = 512  # rows compared to see whether two embeddings are one
_FLOAT_BITS = 10.0  # unquantised copies agree to the rounding of bf16
_CHUNK = 1 << 24  # weights dequantised at a time: numpy's intermediates take several times their size


def stock_name(name: str) -> str:
    """The stock name of a GGUF tensor. Errors: ModelError where this decoder has no place for it."""
    if name in _TOP:
        return _TOP[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in _LAYER:
        return f"model.layers.{int(parts[1])}.{_LAYER[parts[2]]}.{parts[3]}"
    raise ModelError(
        f"the GGUF file holds {name}, which has no place in a Llama, Qwen2 or Qwen3 block", remedy="use another model"
    )


@dataclass(frozen=True, slots=True)
class GGUFWeights:
    """The stock tensors of a file: where each comes from, and its shape."""

    file: GGUFFile
    sources: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    heads: Mapping[str, int]

    @classmethod
    def open(cls, file: GGUFFile, tied: bool) -> GGUFWeights:
        """Name every tensor. Errors: ModelError naming one that this decoder cannot use."""
        sources = {stock_name(name): name for name in file.tensors if name != ROPE}
        if tied and HEAD in sources:
            del sources[HEAD]
            sources[EMBED] = max(TOKENS, OUTPUT, key=lambda name: file.tensors[name].bits)
        shapes = {stock: file.tensors[name].shape for stock, name in sources.items()}
        heads: dict[str, int] = {}
        if file.metadata.get("general.architecture") == "llama":
            q = int(file.metadata["llama.attention.head_count"])
            heads = {"q_proj": q, "k_proj": int(file.metadata.get("llama.attention.head_count_kv", q))}
        return cls(file, sources, shapes, heads)

    def read(self, stock: str) -> Tensor:
        """One stock tensor in bf16. Errors: ModelError where its values are not finite."""
        name = self.sources[stock]
        found = dequantised(self.file, name)
        projection = stock.split(".")[-2]
        if projection in self.heads:
            found = uninterleave(found, self.heads[projection])
        if not bool(found.isfinite().all()):
            raise ModelError(
                f"{self.file.path} is damaged: {name} holds values that are not finite",
                remedy="copy or download the file again",
            )
        return found


def uninterleave(rows: Tensor, heads: int) -> Tensor:
    """[H * P, ...] with each head's rows as (0, P/2, 1, P/2 + 1, ...) to natural order."""
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def dequantised(file: GGUFFile, name: str) -> Tensor:
    """A tensor of the file in bf16, whatever it is stored in."""
    entry = file.tensors[name]
    out = torch.empty(entry.shape, dtype=torch.bfloat16)
    width = entry.shape[-1]
    flat, step = out.view(-1, width), max(1, _CHUNK // width)
    rows = _mapped(file, entry)
    for start in range(0, len(flat), step):
        flat[start : start + step] = torch.from_numpy(_floats(rows[start : start + step], entry, name))
    return out


def rows_of(file: GGUFFile, name: str, picked: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Some rows of a matrix in fp32, [len(picked), width]."""
    entry = file.tensors[name]
    return _floats(_mapped(file, entry)[picked], entry, name)


def rope_factors(file: GGUFFile) -> np.ndarray[Any, Any] | None:
    """The file's divisors of the rotary frequencies [P / 2], where it has them."""
    return rows_of(file, ROPE, np.arange(1))[0] if ROPE in file.tensors else None


def is_tied(file: GGUFFile) -> bool:
    """Whether one matrix embeds and predicts: no output matrix, or one that is the embedding up to quantisation.

    Tensors of b bits a weight differ from their source by about 2^(1 - b) of its size; two models' matrices, or a tied
    one trained on after a split, by far more. Errors: ModelError where the file has no embedding.
    """
    if TOKENS not in file.tensors:
        raise ModelError(f"{file.path} has no {TOKENS}", remedy="use a GGUF file of a whole model")
    if OUTPUT not in file.tensors:
        return True
    tokens, output = file.tensors[TOKENS], file.tensors[OUTPUT]
    if tokens.shape != output.shape:
        return False
    picked = np.linspace(0, tokens.shape[0] - 1, min(_ROWS, tokens.shape[0])).astype(np.int64)
    one, other = rows_of(file, TOKENS, picked), rows_of(file, OUTPUT, picked)
    bits = min(tokens.bits, output.bits, _FLOAT_BITS)
    return bool(np.linalg.norm(one - other) <= 2.0 ** (2 - bits) * np.linalg.norm(other))


def _mapped(file: GGUFFile, entry: TensorEntry) -> np.ndarray[Any, Any]:
    """The stored bytes of a tensor, [rows, bytes a row]; unmapped when the last view of them goes."""
    count = math.prod(entry.shape[:-1])
    return np.memmap(file.path, np.uint8, "r", entry.start, (count, (entry.end - entry.start) // count))


def _floats(raw: np.ndarray[Any, Any], entry: TensorEntry, name: str) -> np.ndarray[Any, Any]:
    gguf = require_gguf()
    kind = gguf.GGMLQuantizationType(entry.kind)
    plain = {"F32": np.float32, "F16": np.float16, "F64": np.float64}.get(entry.kind_name)
    raw = np.ascontiguousarray(raw)
    try:
        found = raw.view(plain) if plain is not None else gguf.dequantize(raw, kind)
    except NotImplementedError as error:
        raise ModelError(
            f"{name} is stored as {entry.kind_name}, which the gguf package cannot read",
            remedy="pip install -U gguf, or use another quantisation (Q4_K_M, Q8_0, F16)",
        ) from error
    return np.require(found, np.float32, "W")  # a copy where it is still the file: torch wants memory it may write
