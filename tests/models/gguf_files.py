"""Small GGUF files of random models, written with the gguf package as llama.cpp's converter would write them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from thinkfast.models.checkpoint import to_stock
from thinkfast.models.decoder import Decoder
from thinkfast.models.spec import ModelSpec

END, START = "<|im_end|>", "<|im_start|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MERGES = ["Ġ t", "h e", "Ġt he", "Ġ Ġ", "1 2"]
NAMES = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def byte_alphabet() -> list[str]:
    """GPT-2's letters for the 256 bytes, in order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(rest)) for b in range(256)]


def vocabulary() -> list[str]:
    """264 tokens: two special ones, a user-defined one, the bytes, and what the merges make."""
    return [START, END, "<think>", *byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES)]


def random_model(arch: str, seed: int = 0, **changes: object) -> Decoder:
    """Weights that bf16 holds exactly, so that a file's copy can be compared bit for bit."""
    sizes: dict[str, object] = {"vocab_size": 264, "d_model": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16}
    sizes |= {"d_ff": 96, "layer_types": ("attention",) * 2, "family": arch, "max_positions": 128}
    sizes |= {"qkv_bias": arch == "qwen2", "qk_norm": arch == "qwen3", "norm_eps": 1e-5, "rope_theta": 1e5}
    model = Decoder(ModelSpec(**(sizes | changes))).requires_grad_(False).eval()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.copy_(
            (p + 0.3 * noise if p.dim() < 2 else noise * (0.7 if "embed" in name else p.shape[1] ** -0.5)).bfloat16()
        )
    return model


def interleave(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's order of a head's rows: 0, P/2, 1, P/2 + 1, ..."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


@dataclass
class GGUFParts:
    """What goes into a file; tests change it before ``write``. types: how to store a tensor, else F32."""

    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray[Any, Any]]
    types: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(path, self.metadata["general.architecture"])
        for key, value in self.metadata.items():
            if key == "general.architecture" or value is None:
                continue
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_array(key, value)
        for name, data in self.tensors.items():
            kind = gguf.GGMLQuantizationType[self.types.get(name, "F32")]
            stored = data if kind.name == "F32" else gguf.quantize(data, kind)
            writer.add_tensor(name, stored, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def parts_of(model: Decoder) -> GGUFParts:
    """The file of ``model``: stock tensors under llama.cpp's names, its metadata, and a byte-level vocabulary."""
    spec, arch = model.spec, model.spec.family
    tensors = {}
    for name, t in to_stock(dict(model.state_dict()), spec).items():
        stem, leaf = name.rsplit(".", 1)
        if arch == "llama" and stem.endswith(("q_proj", "k_proj")):
            t = interleave(t, spec.n_heads if stem.endswith("q_proj") else spec.n_kv_heads)
        if stem.startswith("model.layers."):
            _, _, layer, inner = stem.split(".", 3)
            stem = f"blk.{layer}.{NAMES[inner]}"
        else:
            stem = NAMES[stem]
        tensors[f"{stem}.{leaf}"] = t.float().numpy().copy()
    tokens = vocabulary()
    metadata: dict[str, Any] = {
        "general.architecture": arch,
        f"{arch}.block_count": spec.n_layers,
        f"{arch}.context_length": spec.max_positions,
        f"{arch}.embedding_length": spec.d_model,
        f"{arch}.feed_forward_length": spec.d_ff,
        f"{arch}.attention.head_count": spec.n_heads,
        f"{arch}.attention.head_count_kv": spec.n_kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": spec.norm_eps,
        f"{arch}.rope.freq_base": spec.rope_theta,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2" if arch.startswith("qwen") else "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 4] + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.chat_template": TEMPLATE,
    }
    if arch == "qwen3":
        metadata |= {f"{arch}.attention.key_length": spec.head_dim, f"{arch}.attention.value_length": spec.head_dim}
    return GGUFParts(metadata, tensors)
