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
from thinkfast.models.spec import ModelSpec


def with_d_state(model: Decoder, d_state: int) -> Decoder:
    """``model``, a student, with ``d_state`` states a head, no fewer than it has; weights may be in eight bits."""
    old = model.spec
    spec = replace(old, d_state=d_state)
    channels = _channels(old, d_state).to(model.head_weight.device)
    mixers = [block.mixer for block in model.blocks if isinstance(block.mixer, Mamba)]
    return with_replaced(model, {old: spec} | {mixer: _wider(mixer, old, spec, channels) for mixer in mixers})


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


def _wider(mixer: Mamba, old: ModelSpec, spec: ModelSpec, channels: Tensor) -> Mamba:
    with torch.device("meta"):
        new = Mamba(spec)
    for name in ("dt_bias", "A_log", "D", "norm_weight", "out"):
        setattr(new, name, getattr(mixer, name))
    for name in ("conv_weight", "conv_bias"):
        spread = _spread(getattr(mixer, name).detach(), channels, spec.conv_channels)
        setattr(new, name, nn.Parameter(spread, requires_grad=False))
    # z [H P], the convolution's channels, dt [H].
    z = old.n_heads * old.head_dim
    after = z + spec.conv_channels + torch.arange(old.n_heads, device=channels.device)
    places = torch.cat([torch.arange(z, device=channels.device), z + channels, after])
    new.add_module("in_proj", _wider_linear(mixer.in_proj, places, spec.in_proj_rows))
    return new.train(mixer.training)


def _wider_linear(linear: nn.Linear | Fp8Linear, places: Tensor, rows: int) -> nn.Linear | Fp8Linear:
    """The same outputs at ``places`` of ``rows``, others zero."""
    small = isinstance(linear, Fp8Linear)
    weight, bias = linear.weight.detach(), linear.bias
    if isinstance(linear, Fp8Linear):
        # A row's largest is 448 scales, so rounding it again changes nothing.
        weight = (weight.float() * linear.scale.t())[: linear.out_features, : linear.in_features]
    with torch.device("meta"):
        new = nn.Linear(linear.in_features, rows, bias=bias is not None)
    new.weight = nn.Parameter(_spread(weight, places, rows), requires_grad=False)
    if bias is not None:
        new.bias = nn.Parameter(_spread(bias.detach()[: linear.out_features], places, rows), requires_grad=False)
    return Fp8Linear(new) if small else new
