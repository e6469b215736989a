"""The recurrence's three forms are one function.

Tolerance: outputs are of order 1 to 100 and are sums of at most a few thousand products, each good to 1e-16 relative,
so 1e-10 leaves two orders of slack, while any wrong index, decay or shift shows at order 1e-3 and above.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from thinkfast.models.ssd import ssd_carry, ssd_chunked, ssd_matrix, ssd_step

TIGHT = {"rtol": 0.0, "atol": 1e-10}
LENGTHS = (1, 2, 3, 4, 5, 63, 64, 65, 130)
H, P, N = 6, 5, 7


def inputs(length: int, group: int, n: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, B, C, dt, A of n sequences; decays from a few tokens to hundreds."""
    kv = H // group
    x, b = torch.randn(n, length, kv, P).double(), torch.randn(n, length, kv, N).double()
    c, dt = torch.randn(n, length, H, N).double(), F.softplus(torch.randn(n, length, H).double())
    return x, b, c, dt, -torch.logspace(-3, 0.5, H, dtype=torch.float64)


def stepped(x: Tensor, b: Tensor, c: Tensor, dt: Tensor, a: Tensor, state: Tensor) -> Tensor:
    steps = [ssd_step(x[:, t], b[:, t], c[:, t], dt[:, t], a, state) for t in range(x.shape[1])]
    return torch.stack(steps, 1)


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("length", LENGTHS)
def test_chunked_step_and_matrix_are_equal(length: int, group: int) -> None:
    x, b, c, dt, a = inputs(length, group)
    chunked, final = ssd_chunked(x, b, c, dt, a)
    state = torch.zeros_like(final)
    step = stepped(x, b, c, dt, a, state)
    values = x.repeat_interleave(group, dim=2).transpose(1, 2)
    matrix = (ssd_matrix(b, c, dt, a) @ values).transpose(1, 2)
    torch.testing.assert_close(chunked, step, **TIGHT)
    torch.testing.assert_close(chunked, matrix, **TIGHT)
    torch.testing.assert_close(final, state, **TIGHT)


@pytest.mark.parametrize("chunk", [1, 16, 64, 256])
def test_chunk_size_and_split_do_not_matter(chunk: int) -> None:
    x, b, c, dt, a = inputs(75, 3)
    whole, final = ssd_chunked(x, b, c, dt, a)
    y1, state = ssd_chunked(x[:, :20], b[:, :20], c[:, :20], dt[:, :20], a, chunk)
    y2, end = ssd_chunked(x[:, 20:], b[:, 20:], c[:, 20:], dt[:, 20:], a, chunk, initial=state)
    torch.testing.assert_close(torch.cat((y1, y2), 1), whole, **TIGHT)
    torch.testing.assert_close(end, final, **TIGHT)
    apart, own = ssd_chunked(x[:, 20:], b[:, 20:], c[:, 20:], dt[:, 20:], a, chunk)
    more, kept = ssd_carry(c[:, 20:], dt[:, 20:], a, state)
    torch.testing.assert_close(apart + more, y2, **TIGHT)
    torch.testing.assert_close(own + kept, end, **TIGHT)


def test_matrix_is_the_formula_of_its_docstring() -> None:
    _, b, c, dt, a = inputs(5, 2, n=1)
    found = ssd_matrix(b, c, dt, a)
    for h in range(H):
        for i in range(5):
            for j in range(5):
                decay = math.exp(float(dt[0, j + 1 : i + 1, h].sum() * a[h]))
                want = float(c[0, i, h] @ b[0, j, h // 2]) * decay * float(dt[0, j, h]) if j <= i else 0.0
                assert float(found[0, h, i, j]) == pytest.approx(want, abs=1e-12)


def test_picked_rows_are_rows_of_the_whole_matrix() -> None:
    _, b, c, dt, a = inputs(20, 2)
    rows = torch.tensor([0, 3, 19])
    torch.testing.assert_close(ssd_matrix(b, c, dt, a, rows), ssd_matrix(b, c, dt, a)[:, :, rows], **TIGHT)


def test_padding_with_zero_dt_leaves_the_state_alone() -> None:
    x, b, c, dt, a = inputs(70, 2)
    _, state = ssd_chunked(x[:, :50], b[:, :50], c[:, :50], dt[:, :50], a)
    dt[:, 50:] = 0
    _, padded = ssd_chunked(1e3 * x, b, c, dt, a)  # the tail is loud, and still must not be heard
    torch.testing.assert_close(padded, 1e3 * state, rtol=1e-12, atol=0)
