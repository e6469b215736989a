"""The short convolution: its forms against torch's conv1d, and the hand-written backward against autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from thinkfast.models.conv import conv_parallel, conv_silu, conv_step

TIGHT = {"rtol": 0.0, "atol": 1e-10}  # fp64: a wrong tap shows at order 1


def test_conv_is_torchs_conv1d_and_its_step() -> None:
    u, weight, bias = torch.randn(2, 9, 6).double(), torch.randn(6, 4).double(), torch.randn(6).double()
    window = F.pad(u, (0, 0, 3, 0))
    parallel = conv_parallel(window, weight, bias)
    reference = F.conv1d(window.transpose(1, 2), weight[:, None], bias, groups=6).transpose(1, 2)
    torch.testing.assert_close(parallel, reference, **TIGHT)
    state = torch.zeros(2, 3, 6).double()
    steps = torch.stack([conv_step(u[:, t], state, weight, bias) for t in range(9)], 1)
    torch.testing.assert_close(steps, parallel, **TIGHT)
    assert torch.equal(state, u[:, -3:])


def operands() -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((2, 12, 6), (6, 4), (6,))
    u, weight, bias = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return u, weight, bias


def test_conv_silu_and_its_gradients_are_autograds() -> None:
    u, weight, bias = operands()
    upstream = torch.randn(2, 9, 6, dtype=torch.float64)
    want, found = F.silu(conv_parallel(u, weight, bias)), conv_silu(u, weight, bias)
    torch.testing.assert_close(found, want, **TIGHT)
    for a, b in zip(
        torch.autograd.grad(found, (u, weight, bias), upstream),
        torch.autograd.grad(want, (u, weight, bias), upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **TIGHT)


def test_conv_silu_differentiates_only_what_needs_it() -> None:
    u, weight, bias = operands()
    (found,) = torch.autograd.grad(conv_silu(u, weight.detach(), bias.detach()).sum(), (u,))
    (want,) = torch.autograd.grad(F.silu(conv_parallel(u, weight, bias)).sum(), (u,))
    torch.testing.assert_close(found, want, **TIGHT)
