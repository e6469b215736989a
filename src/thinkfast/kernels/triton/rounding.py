"""A row rounded to e4m3 with a scale of its own, at the end of the kernel that made it or by itself.

Legend: B rows, K width.

Usage: ``round_rows(x, rounded, scale)``; in a kernel ``store_row(OUT, SCALE, b, i, K, y, FP8)``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from thinkfast.kernels.triton.launch import options, overlap, power_of_two, trigger, wait
from thinkfast.models.fp8 import quantize_rows


@triton.jit
def store_row(OUT, SCALE, b, i, K, y, FP8: tl.constexpr):
    """OUT [b] = y, all of a row, zero beyond K; with FP8 in e4m3, and SCALE [b] what that is to be multiplied by."""
    if FP8:
        scale = tl.maximum(tl.max(tl.abs(y), 0) / 448.0, 1e-12)
        tl.store(SCALE + b, scale)
        y = tl.minimum(tl.maximum(y / scale, -448.0), 448.0)
        # To the nearest here, because the interpreter's cast forgets the carry into the exponent: three bits of
        # mantissa, ties to even; below 2 ** -6 steps of 2 ** -9, which is what a sum with 1.5 * 2 ** 14 keeps.
        bits = y.to(tl.uint32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & 0xFFF00000).to(tl.float32, bitcast=True)
        y = tl.where(tl.abs(y) < 0.015625, (y + 24576.0) - 24576.0, normal)
    tl.store(OUT + b * K + i, y.to(OUT.dtype.element_ty), mask=i < K)


@triton.jit
def _round_rows(X, OUT, SCALE, K, BK: tl.constexpr, PDL: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BK)
    wait(PDL)
    trigger(PDL)
    store_row(OUT, SCALE, b, i, K, tl.load(X + b * K + i, mask=i < K, other=0.0).to(tl.float32), True)


def round_rows(x: Tensor, out: Tensor, scale: Tensor) -> None:
    """out [B, K] in e4m3 and scale [B, 1] of x [B, K], as models.fp8.quantize_rows."""
    rows, width = x.shape
    warps = 8 if width >= 2048 else 4
    _round_rows[(rows,)](
        x, out, scale, width, power_of_two(width), overlap(x.device), **options(warps, x.device)
    )  # fmt: skip


def rounded_reference(y: Tensor, out: Tensor, scale: Tensor | None) -> None:
    """``store_row`` of all rows in torch: y [B, K] in fp32."""
    if scale is None:
        out.copy_(y)
        return
    rounded, found = quantize_rows(y)
    out.copy_(rounded)
    scale.copy_(found)
