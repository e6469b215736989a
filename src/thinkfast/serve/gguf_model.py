"""A model as one GGUF file that llama.cpp runs without our code: `granitehybrid` for students, `llama` for teachers.

Legend: H heads, P head dim, N state, D = H * P model width, C = 2 H N + D convolution channels.

llama.cpp's loader fixes the inner width of a Mamba layer at 2 D (expand 2), so every layer gets as many heads again
that are all zero: nothing enters them, nothing leaves them, and the per-head norm keeps them apart. Rotary positions
are on, as for Bamba; they turn neighbouring channels there, so rows of q and k are interleaved. Its graph of a hybrid
always asks for a place in the KV cache and aborts where no layer has one, so a pure student gets one layer more, of
attention with a single key-value head, whose weights are zero: it adds nothing to the residual.

Usage: ``write_gguf(loaded, Path("student.gguf"), torch.float32)``.
Source: llama.cpp, src/models/granite-hybrid.cpp for names and shapes, conversion/granite.py for the fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thinkfast.errors import ModelError
from thinkfast.files import atomic_path
from thinkfast.models.attention import rope_frequencies
from thinkfast.models.checkpoint import to_stock
from thinkfast.models.loading import Loaded
from thinkfast.models.spec import ModelSpec
from thinkfast.serve.gguf_tokens import add_vocabulary, read_vocabulary

BLOCK = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "shared_mlp.output_linear.weight": "ffn_down.weight",
    "mamba.in_proj.weight": "ssm_in.weight",
    "mamba.conv1d.weight": "ssm_conv1d.weight",
    "mamba.conv1d.bias": "ssm_conv1d.bias",
    "mamba.dt_bias": "ssm_dt.bias",
    "mamba.A_log": "ssm_a",
    "mamba.D": "ssm_d",
    "mamba.norm.weight": "ssm_norm.weight",
    "mamba.out_proj.weight": "ssm_out.weight",
}
TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IDLE_KV_HEADS = 1
FILE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}


def write_gguf(loaded: Loaded, path: Path, dtype: torch.dtype, name: str | None = None) -> int:
    """Write ``loaded`` to ``path``; matrices in ``dtype``, the rest in fp32, as llama.cpp wants it. Returns bytes.

    Errors: ModelError for what llama.cpp cannot run; OutputError where ``path`` cannot be written.
    """
    try:
        import gguf
    except ImportError as error:
        raise ModelError("writing GGUF needs the gguf library", remedy="pip install 'thinkfast[gguf]'") from error
    spec = loaded.spec
    _refuse(spec)
    tokenizer = loaded.tokenizer
    special = {key.removesuffix("_token_id"): i for key, i in tokenizer.special_ids().items()}
    vocabulary = read_vocabulary(tokenizer.path, spec.vocab_size, special, chat_template(tokenizer.path))
    with atomic_path(path) as temp:
        writer = gguf.GGUFWriter(temp, "granitehybrid" if spec.is_student else "llama")
        writer.add_name(name or loaded.name)
        writer.add_file_type(FILE_TYPES[dtype])
        _add_sizes(writer, spec)
        add_vocabulary(writer, vocabulary)
        kind = {torch.float16: "F16", torch.bfloat16: "BF16"}.get(dtype)
        for tensor_name, tensor in gguf_tensors(dict(loaded.model.state_dict()), spec):
            array = tensor.float().numpy()
            # llama.cpp reads vectors and the convolution kernel in fp32 only.
            if (
                kind is None
                or array.ndim < 2
                or tensor_name.endswith(("ssm_conv1d.weight", "ssm_norm.weight", "_a", "_d"))
            ):
                writer.add_tensor(tensor_name, array)
            else:
                quant = gguf.GGMLQuantizationType[kind]
                writer.add_tensor(tensor_name, gguf.quants.quantize(array, quant), raw_dtype=quant)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path.stat().st_size


def _refuse(spec: ModelSpec) -> None:
    for field, what in (("ssm_bias", "biases in Mamba projections"), ("qk_norm", "qk-norm in this architecture")):
        if getattr(spec, field):
            raise ModelError(f"llama.cpp has no {what}", remedy="export with --to hf, for transformers and vLLM")
    if spec.qkv_bias:
        raise ModelError("a bias of q, k and v is not written to GGUF", remedy="export with --to hf")


def _add_sizes(writer: Any, spec: ModelSpec) -> None:
    writer.add_vocab_size(spec.vocab_size)
    writer.add_context_length(spec.max_positions)
    writer.add_embedding_length(spec.d_model)
    idle = _idle_layers(spec)
    writer.add_block_count(spec.n_layers + idle)
    writer.add_feed_forward_length(spec.d_ff)
    writer.add_head_count(spec.n_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    if not spec.is_student:
        writer.add_head_count_kv(spec.n_kv_heads)
        return
    # A layer without key-value heads is a Mamba layer to llama.cpp.
    writer.add_head_count_kv(
        [spec.n_kv_heads if kind == "attention" else 0 for kind in spec.layer_types] + [IDLE_KV_HEADS] * idle
    )
    writer.add_rope_scaling_finetuned(True)  # the switch that turns rotary positions on
    writer.add_attention_scale(spec.head_dim**-0.5)
    writer.add_ssm_conv_kernel(spec.d_conv)
    writer.add_ssm_inner_size(2 * spec.d_model)
    writer.add_ssm_state_size(spec.d_state)
    writer.add_ssm_time_step_rank(2 * spec.n_heads)
    writer.add_ssm_group_count(2 * spec.n_heads)


def _idle_layers(spec: ModelSpec) -> int:
    return int(spec.is_student and not spec.n_attention)


def gguf_tensors(tensors: dict[str, Tensor], spec: ModelSpec) -> Iterator[tuple[str, Tensor]]:
    """Our named tensors as llama.cpp's names and shapes."""
    if spec.rope_scaling is not None:
        plain = spec.rope_theta ** (-torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim)
        yield "rope_freqs.weight", plain / rope_frequencies(spec)
    for name, t in to_stock(tensors, spec).items():
        if name in TOP:
            yield TOP[name], t
            continue
        _, _, layer, leaf = name.split(".", 3)
        prefix = f"blk.{layer}."
        if leaf == "shared_mlp.input_linear.weight":
            gate, up = t.chunk(2)
            yield f"{prefix}ffn_gate.weight", gate.contiguous()
            yield f"{prefix}ffn_up.weight", up.contiguous()
        elif leaf in ("self_attn.q_proj.weight", "self_attn.k_proj.weight"):
            yield prefix + BLOCK[leaf], interleave(t, spec.head_dim)
        elif leaf.startswith("mamba."):
            yield prefix + BLOCK[leaf], pad_heads(leaf.removeprefix("mamba."), t, spec)
        else:
            yield prefix + BLOCK[leaf], t
    if _idle_layers(spec):
        yield from _idle_layer(spec, tensors["embed.weight"])


def _idle_layer(spec: ModelSpec, like: Tensor) -> Iterator[tuple[str, Tensor]]:
    prefix, d, inner = f"blk.{spec.n_layers}.", spec.d_model, spec.n_heads * spec.head_dim
    for leaf in ("attn_norm.weight", "ffn_norm.weight"):
        yield prefix + leaf, like.new_ones(d)
    shapes = {
        "attn_q.weight": (inner, d),
        "attn_k.weight": (IDLE_KV_HEADS * spec.head_dim, d),
        "attn_v.weight": (IDLE_KV_HEADS * spec.head_dim, d),
        "attn_output.weight": (d, inner),
        "ffn_gate.weight": (spec.d_ff, d),
        "ffn_up.weight": (spec.d_ff, d),
        "ffn_down.weight": (d, spec.d_ff),
    }
    for leaf, shape in shapes.items():
        yield prefix + leaf, like.new_zeros(shape)


def interleave(rows: Tensor, head_dim: int) -> Tensor:
    """Rows [heads * P, D] of rotary halves (i, i + P / 2) to rows of neighbours (2 i, 2 i + 1)."""
    return rows.view(-1, 2, head_dim // 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def pad_heads(name: str, t: Tensor, spec: ModelSpec) -> Tensor:
    """A stock Mamba tensor with its H heads followed by H heads of zeros, in llama.cpp's shape."""
    h, p, n = spec.n_heads, spec.head_dim, spec.d_state
    conv = (h * p, h * n, h * n)
    if name == "in_proj.weight":
        return _double(t, (h * p, *conv, h))
    if name == "conv1d.weight":
        return _double(t.squeeze(1), conv)
    if name == "conv1d.bias":
        return _double(t, conv)
    if name == "dt_bias":
        return _double(t, (h,))
    if name == "D":
        return _double(t, (h,))[:, None]
    if name == "A_log":
        return torch.cat((-t.exp(), torch.full_like(t, -1.0)))[:, None]  # llama.cpp stores A itself
    if name == "norm.weight":
        return torch.cat((t, torch.ones_like(t))).view(2 * h, p)
    return torch.cat((t, torch.zeros_like(t)), 1)


def _double(rows: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return torch.cat([part for piece in rows.split_with_sizes(sizes) for part in (piece, torch.zeros_like(piece))])


def chat_template(folder: Path) -> str | None:
    """The chat template of a checkpoint folder, from its own file or from tokenizer_config.json."""
    own, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    found = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    return found if isinstance(found, str) else None
