"""The fast parallel form against its reference: values, final state, and the hand-written backward pass.

Tolerance: as in test_ssd.py; gradients are sums of as many products as the values.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from thinkfast.models.ssd import CHUNK, ssd_chunked
from thinkfast.models.ssd_fast import ssd_parallel

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
HEADS, P, N = 6, 5, 7


def operands(group: int, length: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """xbc, dt, a, d of two sequences, the second of which ends 20 tokens early."""
    kv = HEADS // group
    xbc = torch.randn(2, length, kv * P + kv * N + HEADS * N, dtype=dtype)
    dt = F.softplus(torch.randn(2, length, HEADS, dtype=dtype))
    dt[1, max(1, length - 20) :] = 0
    a, d = -torch.logspace(-3, 0.5, HEADS, dtype=dtype), torch.randn(HEADS, dtype=dtype)
    return tuple(t.requires_grad_(True) for t in (xbc, dt, a, d))


def reference(xbc: Tensor, dt: Tensor, a: Tensor, d: Tensor, group: int) -> tuple[Tensor, Tensor]:
    n, length, _ = xbc.shape
    kv = HEADS // group
    x, b, c = xbc.split((kv * P, kv * N, HEADS * N), -1)
    x = x.view(n, length, kv, P)
    y, state = ssd_chunked(x, b.view(n, length, kv, N), c.view(n, length, HEADS, N), dt, a)
    return y + d[:, None] * x.repeat_interleave(group, 2), state


@pytest.mark.parametrize("length", [CHUNK, 2 * CHUNK, 5 * CHUNK])
@pytest.mark.parametrize("group", [1, 2, 3])
def test_values_state_and_gradients_are_the_references(group: int, length: int) -> None:
    xbc, dt, a, d = operands(group, length)
    y, state = ssd_parallel(xbc, dt, a, d, (HEADS // group, P, N))
    want, end = reference(xbc, dt, a, d, group)
    torch.testing.assert_close(y, want, **TIGHT)
    torch.testing.assert_close(state, end, **TIGHT)
    upstream = torch.randn_like(y)
    upstream[1, max(1, length - 20) :] = 0  # what ``unpad`` sends back
    found = torch.autograd.grad(y, (xbc, dt, a, d), upstream)
    expected = list(torch.autograd.grad(want, (xbc, dt, a, d), upstream))
    expected[1] = expected[1] * (dt > 0)  # where dt is 0, in padding, the fast form reports no gradient
    for got, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(got, exact, **TIGHT)


def test_chunk_size_does_not_matter() -> None:
    xbc, dt, a, d = operands(2, 96)
    y, state = ssd_parallel(xbc, dt, a, d, (3, P, N), 32)
    for chunk in (1, 8, 96):
        other, end = ssd_parallel(xbc, dt, a, d, (3, P, N), chunk)
        torch.testing.assert_close(other, y, **TIGHT)
        torch.testing.assert_close(end, state, **TIGHT)


def test_strong_decay_overflows_nothing() -> None:
    xbc, dt, _, d = operands(1, 2 * CHUNK, torch.float32)
    a = torch.full((HEADS,), -200.0, requires_grad=True)  # exp(+200 * 32) would be infinite
    y, _ = ssd_parallel(xbc, dt, a, d, (HEADS, P, N))
    grads = torch.autograd.grad(y.sum(), (xbc, dt, a, d))
    assert all(t.isfinite().all() for t in (y, *grads))


def test_under_autocast_everything_stays_in_fp32() -> None:
    xbc, dt, a, d = operands(2, CHUNK, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = ssd_parallel(xbc, dt, a, d, (3, P, N))
    want, _ = reference(xbc, dt, a, d, 2)
    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-4)
