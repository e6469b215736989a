"""SiLU's two instructions of a GPU against fp64, over all of fp32's range that matters and what lies beyond it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")

import triton
import triton.language as tl
from torch.nn.functional import silu as silu_reference

from thinkfast.kernels.triton.silu import silu


@triton.jit
def _each(X, OUT, count, BLOCK: tl.constexpr):  # noqa: ANN001  # a kernel
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(OUT + i, silu(tl.load(X + i, mask=i < count, other=0.0)), mask=i < count)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of exp(200)
def test_it_is_silu_to_a_few_units_in_the_last_place(device: torch.device) -> None:
    near = torch.randn(3000, generator=torch.Generator().manual_seed(0)) * 4
    x = torch.cat([near, torch.linspace(-200, 200, 1000), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30])])
    y = torch.full_like(x, 7.0, device=device)
    _each[(triton.cdiv(len(x), 1024),)](x.to(device), y, len(x), 1024)
    # x * log2(e) is rounded before it is an exponent, and what is less than fp32's smallest normal number may become 0.
    want = silu_reference(x.double())
    off = (y.cpu().double() - want).abs()
    assert (off <= (4e-7 + 1.2e-7 * x.double().abs()) * want.abs() + 1e-35).all()


def test_what_is_not_finite_stays_so(device: torch.device) -> None:
    x = torch.tensor([float("nan"), float("inf"), 1.0, 2.0])
    y = torch.empty_like(x, device=device)
    _each[(1,)](x.to(device), y, 4, 4)
    torch.testing.assert_close(y.cpu(), silu_reference(x), equal_nan=True)
