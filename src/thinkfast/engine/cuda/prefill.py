"""Packed prefill of ragged prompts on a GPU: Decoder.prefill with the mixers' kernels in it.

Legend: T tokens, n prompts, D model width, C conv channels, W convolution width.

Usage: ``hidden, states = prefill(model, mixers, tokens, ragged)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thinkfast.kernels.triton.mixer import MixerLayer
from thinkfast.kernels.triton.norm import add_norm
from thinkfast.kernels.triton.ssd import ssd_prefill
from thinkfast.kernels.triton.swiglu import swiglu
from thinkfast.models.decoder import Decoder, LayerState
from thinkfast.models.mixers import Mamba, SSMState
from thinkfast.models.ragged import Ragged


def prefill(
    model: Decoder, mixers: Sequence[MixerLayer], tokens: Tensor, ragged: Ragged
) -> tuple[Tensor, list[LayerState]]:
    """tokens [T] to hidden states [T, D] and, per layer, the state that decoding goes on from; ``mixers`` are those
    of the Mamba layers, in order.
    """
    # Norms, residuals and gates by the decode step's kernels: torch's take a fifth of a prefill.
    rope, eps = model.rope(ragged.positions), model.spec.norm_eps
    residual = model.embed(tokens)
    normed = model.blocks[0].input_norm(residual)
    norms = [block.input_norm.weight for block in model.blocks[1:]] + [model.norm.weight]
    states: list[LayerState] = []
    layers = iter(mixers)
    for block, following in zip(model.blocks, norms, strict=True):
        state: LayerState
        if isinstance(block.mixer, Mamba):
            mixed, state = _mix(block.mixer, next(layers), normed, ragged)
        else:
            mixed, state = block.mixer.prefill(normed, ragged, rope)
        states.append(state)
        add_norm(residual, mixed, block.post_norm.weight, normed, eps)
        both = block.mlp.gate_up(normed)
        gated = both.new_empty(both.shape[0], block.mlp.down.in_features)
        swiglu(both, gated)
        add_norm(residual, block.mlp.down(gated), following, normed, eps)
    return normed, states


def _mix(mixer: Mamba, layer: MixerLayer, u: Tensor, ragged: Ragged) -> tuple[Tensor, SSMState]:
    projected = mixer.in_proj(u)
    shape = (mixer.kv_heads, mixer.head_dim, mixer.d_state)
    y, ssm = ssd_prefill(projected, layer, ragged.starts, ragged.lens, ragged.positions, shape)
    raw = projected[:, mixer.sizes[0] : mixer.sizes[0] + mixer.sizes[1]]
    before = torch.arange(1 - mixer.d_conv, 0, device=u.device)
    at = ragged.starts[:, None] + ragged.lens[:, None] + before
    inside = at >= ragged.starts[:, None]
    conv = raw[at.clamp_min(0)] * inside[..., None]
    return mixer.out(y), SSMState(conv, ssm)
