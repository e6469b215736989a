"""The short causal depthwise convolution before the recurrence: parallel with its SiLU, and step.

Legend: n sequences, L length, C channels, W width (taps), B rows.

``conv_silu`` is what training and prefill call: convolution and SiLU as one differentiable step with its own backward
pass, which reads the window W times and writes two tensors, where autograd over the plain form writes a dozen.
``conv_parallel`` is its reference, W shifted multiply-adds.

Usage: ``y = conv_silu(window, weight, bias)``; one token at a time: ``conv_step(u, state, weight, bias)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor


def conv_parallel(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Causal depthwise convolution of left-padded u [n, L + W - 1, C] with weight [C, W]: [n, L, C]."""
    length = u.shape[1] - weight.shape[1] + 1
    out = torch.addcmul(bias, u[:, :length], weight[:, 0])
    for i in range(1, weight.shape[1]):
        out = torch.addcmul(out, u[:, i : i + length], weight[:, i])
    return out


def conv_silu(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``silu(conv_parallel(u, weight, bias))``."""
    return cast(Callable[..., Tensor], _ConvSilu.apply)(u, weight, bias)


class _ConvSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        length = u.shape[1] - weight.shape[1] + 1
        taps = weight.T.contiguous()
        linear = torch.addcmul(bias, u[:, :length], taps[0])
        for i in range(1, len(taps)):
            linear.addcmul_(u[:, i : i + length], taps[i])
        ctx.save_for_backward(u, taps, linear)
        return F.silu(linear)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        u, taps, linear = ctx.saved_tensors
        length = linear.shape[1]
        grad = torch.ops.aten.silu_backward(upstream[0], linear)
        grad_u = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_u = torch.zeros_like(u)
            for i, tap in enumerate(taps):
                grad_u[:, i : i + length].addcmul_(grad, tap)
        if ctx.needs_input_grad[1]:
            product = torch.empty_like(grad)
            columns = [torch.mul(grad, u[:, i : i + length], out=product).sum((0, 1)) for i in range(len(taps))]
            grad_weight = torch.stack(columns, 1)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 1))
        return grad_u, grad_weight, grad_bias


def conv_step(u: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One token of the convolution: u [B, C]; ``state`` [B, W - 1, C] shifts in place. Returns [B, C]."""
    width = weight.shape[1]
    out = torch.addcmul(bias, u, weight[:, -1])
    for i in range(width - 1):
        out.addcmul_(state[:, i], weight[:, i])
    for i in range(width - 2):
        state[:, i] = state[:, i + 1]
    state[:, width - 2] = u
    return out
