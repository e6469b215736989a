"""Packed prefill of ragged prompts on a GPU: Decoder.prefill with the decode step's kernels in it.

Legend: T tokens, n prompts, D model width, F feed-forward width, C conv channels, W convolution width.

Usage: ``hidden, states = prefill(model, mixers, tokens, ragged)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thinkfast.kernels.triton.gated import gated, serves
from thinkfast.kernels.triton.mixer import MixerLayer
from thinkfast.kernels.triton.norm import add_norm
from thinkfast.kernels.triton.rounding import round_rows
from thinkfast.kernels.triton.ssd import ssd_prefill
from thinkfast.kernels.triton.swiglu import swiglu
from thinkfast.models.decoder import Block, Decoder, LayerState
from thinkfast.models.fp8 import FP8, Fp8Linear, is_fp8
from thinkfast.models.mixers import Mamba, SSMState
from thinkfast.models.ragged import Ragged


@dataclass(frozen=True, slots=True)
class _Rows:
    """What goes into a product: x [T, K], in eight bits where there is a ``scale`` [T, 1]."""

    x: Tensor
    scale: Tensor | None

    @classmethod
    def empty(cls, like: Tensor, width: int, fp8: bool) -> _Rows:
        """Room for as many rows as ``like`` has."""
        x = like.new_empty(like.shape[0], width, dtype=FP8 if fp8 else like.dtype)
        return cls(x, like.new_empty(like.shape[0], 1, dtype=torch.float32) if fp8 else None)

    @classmethod
    def of(cls, x: Tensor, fp8: bool) -> _Rows:
        """``x`` itself, or rounded."""
        if not fp8:
            return cls(x, None)
        rows = cls.empty(x, x.shape[1], True)
        if rows.scale is not None:
            round_rows(x, rows.x, rows.scale)
        return rows

    def times(self, linear: nn.Linear | Fp8Linear, dtype: torch.dtype) -> Tensor:
        """Their product with a layer's weight [N, K], [T, N]."""
        if isinstance(linear, Fp8Linear) and self.scale is not None:
            return linear.of_rounded(self.x, self.scale, dtype)
        y: Tensor = linear(self.x)
        return y


def prefill(
    model: Decoder, mixers: Sequence[MixerLayer], tokens: Tensor, ragged: Ragged
) -> tuple[Tensor, list[LayerState]]:
    """tokens [T] to hidden states [T, D] and, per layer, the state that decoding goes on from; ``mixers`` are those
    of the Mamba layers, in order.
    """
    # Norms, residuals and gates by the decode step's kernels: torch's take a fifth of a prefill.
    rope, eps, fp8 = model.rope(ragged.positions), model.spec.norm_eps, is_fp8(model)
    residual = model.embed(tokens)
    dtype, width = residual.dtype, residual.shape[1]

    def added(update: Tensor, weight: Tensor, rounded: bool) -> _Rows:
        rows = _Rows.empty(residual, width, rounded)
        add_norm(residual, update, weight, rows.x, eps, rows.scale)
        return rows

    def rounds(block: Block | None) -> bool:
        # Attention does its own rounding, and the head is not in eight bits.
        return fp8 and block is not None and isinstance(block.mixer, Mamba)

    blocks: list[Block | None] = [*model.blocks, None]
    norms = [block.input_norm.weight for block in model.blocks[1:]] + [model.norm.weight]
    normed = _Rows.of(model.blocks[0].input_norm(residual), rounds(blocks[0]))
    states: list[LayerState] = []
    layers = iter(mixers)
    for block, following, norm in zip(model.blocks, blocks[1:], norms, strict=True):
        state: LayerState
        if isinstance(block.mixer, Mamba):
            mixed, state = _mix(block.mixer, next(layers), normed, ragged, dtype)
        else:
            mixed, state = block.mixer.prefill(normed.x, ragged, rope)
        states.append(state)
        inner = _gate_up(added(mixed, block.post_norm.weight, fp8), block.mlp.gate_up, dtype)
        normed = added(inner.times(block.mlp.down, dtype), norm, rounds(following))
    return normed.x, states


def _gate_up(normed: _Rows, gate_up: nn.Linear | Fp8Linear, dtype: torch.dtype) -> _Rows:
    """silu(gate) * up [T, F]."""
    fp8 = normed.scale is not None
    inner = _Rows.empty(normed.x, gate_up.out_features // 2, fp8)
    if not fp8 and serves(inner.x.shape[0], gate_up.weight):
        gated(normed.x, gate_up.weight, inner.x)
    else:
        swiglu(normed.times(gate_up, dtype), inner.x, inner.scale)
    return inner


def _mix(mixer: Mamba, layer: MixerLayer, u: _Rows, ragged: Ragged, dtype: torch.dtype) -> tuple[Tensor, SSMState]:
    projected = u.times(mixer.in_proj, dtype)
    shape = (mixer.kv_heads, mixer.head_dim, mixer.d_state)
    y, ssm = ssd_prefill(projected, layer, ragged.starts, ragged.lens, ragged.positions, shape)
    raw = projected[:, mixer.sizes[0] : mixer.sizes[0] + mixer.sizes[1]]
    before = torch.arange(1 - mixer.d_conv, 0, device=projected.device)
    at = ragged.starts[:, None] + ragged.lens[:, None] + before
    inside = at >= ragged.starts[:, None]
    conv = raw[at.clamp_min(0)] * inside[..., None]
    return _Rows.of(y, u.scale is not None).times(mixer.out, dtype), SSMState(conv, ssm)
