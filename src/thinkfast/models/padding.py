"""A student with more states a head that says the same: those that are added stay zero.

A GPU's kernels cut a head's state by powers of two, from 16 on. A model with another d_state gets zero rows in the
projections to B and C, and in their convolution: SiLU(0) = 0, so the states added are never written, and never read.

Legend: H heads, K key-value heads (compact x and B), P head dim, N state, C conv channels, D model width.

Usage: ``wider = with_d_state(model, 32)``; what does not change is shared with ``model``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from thinkfast.models.decoder import Decoder, with_replaced
from thinkfast.models.fp8 import Fp8Linear
from thinkfast.models.mixers import Mamba
from thinkfast.models.skeleton import skeleton
from thinkfast.models.spec import ModelSpec


def with_d_state(model: Decoder, d_state: int) -> Decoder:
    """``model``, a student, with ``d_state`` states a head, no fewer than it has; weights may be in eight bits."""
    old = model.spec
    spec = replace(old, d_state=d_state)
    channels = _channels(old, d_state).to(model.head_weight.device)
    others: dict[object, object] = {old: spec}
    for block, empty in zip(model.blocks, skeleton(spec).blocks, strict=True):
        if isinstance(block.mixer, Mamba) and isinstance(empty.mixer, Mamba):
            others[block.mixer] = _fill(empty.mixer, block.mixer, channels)
    return with_replaced(model, others)


def _channels(spec: ModelSpec, d_state: int) -> Tensor:
    """Where the convolution's C channels (x, B by key-value head, C by head) lie among those of the wider one."""
    x = spec.ssm_kv_heads * spec.head_dim
    groups = torch.arange(spec.ssm_kv_heads + spec.n_heads)[:, None] * d_state + torch.arange(spec.d_state)
    return torch.cat([torch.arange(x), x + groups.flatten()])


def _spread(rows: Tensor, places: Tensor, count: int) -> Tensor:
    """``rows`` [R, ...] at ``places`` [R] of ``count`` rows of zeros."""
    out = rows.new_zeros(count, *rows.shape[1:])
    out[places] = rows
    return out


def _fill(wider: Mamba, mixer: Mamba, channels: Tensor) -> Mamba:
    """``wider``, which has no weights yet, with those of ``mixer``."""
    for name in ("dt_bias", "A_log", "D", "norm_weight", "out"):
        setattr(wider, name, getattr(mixer, name))
    for name in ("conv_weight", "conv_bias"):
        spread = _spread(getattr(mixer, name).detach(), channels, len(getattr(wider, name)))
        setattr(wider, name, nn.Parameter(spread, requires_grad=False))
    # z [H P], the convolution's channels, dt [H].
    z, count, heads = wider.sizes
    z_at, heads_at = (torch.arange(size, device=channels.device) for size in (z, heads))
    places = torch.cat([z_at, z + channels, z + count + heads_at])
    wider.add_module("in_proj", _filled(wider.in_proj, mixer.in_proj, places))
    return wider.train(mixer.training)


def _filled(wider: nn.Linear, linear: nn.Linear | Fp8Linear, places: Tensor) -> nn.Linear | Fp8Linear:
    """``wider`` with the outputs of ``linear`` at ``places``, others zero."""
    weight, bias, rows = linear.weight.detach(), linear.bias, wider.out_features
    if isinstance(linear, Fp8Linear):
        # A row's largest is 448 scales, so rounding it again changes nothing.
        weight = (weight.float() * linear.scale.t())[: linear.out_features, : linear.in_features]
    wider.weight = nn.Parameter(_spread(weight, places, rows), requires_grad=False)
    if bias is not None:
        wider.bias = nn.Parameter(_spread(bias.detach()[: linear.out_features], places, rows), requires_grad=False)
    return Fp8Linear(wider) if isinstance(linear, Fp8Linear) else wider
