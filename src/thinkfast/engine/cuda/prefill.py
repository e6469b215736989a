"""Packed prefill of ragged prompts on a GPU: Decoder.prefill with the mixers' kernels in it.

Legend: T tokens, n prompts, D model width, C conv channels, W convolution width.

Usage: ``hidden, states = prefill(model, mixers, tokens, ragged)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thinkfast.kernels.triton.mixer import MixerLayer
from thinkfast.kernels.triton.ssd import ssd_prefill
from thinkfast.models.decoder import Decoder, LayerState
from thinkfast.models.mixers import Mamba, SSMState
from thinkfast.models.ragged import Ragged


def prefill(
    model: Decoder, mixers: Sequence[MixerLayer], tokens: Tensor, ragged: Ragged
) -> tuple[Tensor, list[LayerState]]:
    """tokens [T] to hidden states [T, D] and, per layer, the state that decoding goes on from; ``mixers`` are those
    of the Mamba layers, in order.
    """
    x, rope = model.embed(tokens), model.rope(ragged.positions)
    states: list[LayerState] = []
    layers = iter(mixers)
    for block in model.blocks:
        if isinstance(block.mixer, Mamba):
            mixed, state = _mix(block.mixer, next(layers), block.input_norm(x), ragged)
            x = block.feed_forward(x + mixed)
            states.append(state)
        else:
            x, kv = block.prefill(x, ragged, rope)
            states.append(kv)
    return model.norm(x), states


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
