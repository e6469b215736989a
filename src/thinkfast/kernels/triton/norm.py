"""Residual add and RMS norm in one pass, and the step's first lines: embedding rows and their norm.

Legend: B rows, D model width, S slots, R shares of an update (product.py).

With ``scale`` [B, 1] add_norm's norm comes rounded to e4m3 as the next product takes it (models/fp8.py).

Usage: ``add_norm(residual, update, weight, normed, eps)``; ``embed_norm(table, tokens, active, weight, ...)``.
Source: RMSNorm, arXiv 1910.07467.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from thinkfast.kernels.triton.launch import options, overlap, power_of_two, trigger, wait
from thinkfast.kernels.triton.rounding import rounded_reference, store_row

# Of inverse_rms: rows of a program, and columns that it reads at once.
_TOGETHER, _AT_ONCE = 64, 256


@triton.jit
def _embed_norm(
    TABLE, TOKEN, ACTIVE, WEIGHT, RESIDUAL, NORMED, TURN, eps, D: tl.constexpr, BD: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BD)
    slot = tl.load(ACTIVE + b)
    w = tl.load(WEIGHT + i, mask=i < D, other=0.0).to(tl.float32)
    wait(PDL)
    trigger(PDL)
    if b == 0:
        tl.store(TURN, tl.load(TURN) + 1)
    token = tl.load(TOKEN + slot).to(tl.int64)
    x = tl.load(TABLE + token * D + i, mask=i < D, other=0.0)
    tl.store(RESIDUAL + b * D + i, x, mask=i < D)
    x = x.to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / D + eps) * w
    tl.store(NORMED + b * D + i, y.to(NORMED.dtype.element_ty), mask=i < D)


@triton.jit
def _add_norm(
    RESIDUAL,
    UPDATE,
    WEIGHT,
    NORMED,
    SCALE,
    eps,
    D: tl.constexpr,
    BD: tl.constexpr,
    R: tl.constexpr,
    FP8: tl.constexpr,
    PDL: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BD)
    w = tl.load(WEIGHT + i, mask=i < D, other=0.0).to(tl.float32)
    wait(PDL)
    trigger(PDL)
    x = tl.load(RESIDUAL + b * D + i, mask=i < D, other=0.0).to(tl.float32)
    update = tl.load(UPDATE + b * D + i, mask=i < D, other=0.0).to(tl.float32)
    for r in tl.static_range(1, R):
        update += tl.load(UPDATE + (r * tl.num_programs(0) + b) * D + i, mask=i < D, other=0.0).to(tl.float32)
    x += update
    # What the next layer sees is what was stored, as in the reference.
    x = x.to(RESIDUAL.dtype.element_ty)
    tl.store(RESIDUAL + b * D + i, x, mask=i < D)
    x = x.to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / D + eps) * w
    store_row(NORMED, SCALE, b, i, D, y, FP8)


@triton.jit
def row_inverse_rms(ROW, eps, D: tl.constexpr, BLOCK: tl.constexpr) -> tl.tensor:
    """One over the root mean square of D entries, BLOCK of them at a time."""
    i = tl.arange(0, BLOCK)
    squares = 0.0
    for first in tl.static_range(0, D, BLOCK):
        x = tl.load(ROW + first + i, mask=first + i < D, other=0.0).to(tl.float32)
        squares += tl.sum(x * x, 0)
    return tl.rsqrt(squares / D + eps)


@triton.jit(do_not_specialize=["B"])
def _inverse_rms(X, OUT, eps, B, D: tl.constexpr, R: tl.constexpr, BD: tl.constexpr, PDL: tl.constexpr):
    b = tl.program_id(0) * R + tl.arange(0, R)
    row, i = b.to(tl.int64)[:, None] * D, tl.arange(0, BD)[None, :]
    wait(PDL)
    trigger(PDL)
    squares = tl.zeros((R,), tl.float32)
    for first in tl.static_range(0, D, BD):
        x = tl.load(X + row + first + i, mask=(b < B)[:, None] & (first + i < D), other=0.0).to(tl.float32)
        squares += tl.sum(x * x, 1)
    tl.store(OUT + b, tl.rsqrt(squares / D + eps), mask=b < B)


def _warps(width: int) -> int:
    return 8 if width >= 2048 else 4 if width >= 1024 else 1


def embed_norm(
    table: Tensor,
    tokens: Tensor,
    active: Tensor,
    weight: Tensor,
    residual: Tensor,
    normed: Tensor,
    eps: float,
    turn: Tensor,
) -> None:
    """residual [B, D] = table [V, D] rows of tokens [S] at slots active [B]; normed [B, D] its norm; turn [1] int32, a
    count of steps, is one more.
    """
    rows, width = residual.shape
    _embed_norm[(rows,)](
        table, tokens, active, weight, residual, normed, turn, eps, width, power_of_two(width),
        overlap(table.device), **options(_warps(width), table.device),
    )  # fmt: skip


def embed_norm_reference(
    table: Tensor,
    tokens: Tensor,
    active: Tensor,
    weight: Tensor,
    residual: Tensor,
    normed: Tensor,
    eps: float,
    turn: Tensor,
) -> None:
    """``embed_norm`` in torch."""
    turn += 1
    residual.copy_(table[tokens[active.long()].long()])
    normed.copy_(torch.rms_norm(residual.float(), weight.shape, weight.float(), eps))


def add_norm(
    residual: Tensor, update: Tensor, weight: Tensor, normed: Tensor, eps: float, scale: Tensor | None = None
) -> None:
    """residual [B, D] += update [B, D], or the sum of update [R, B, D]; normed [B, D] = RMS norm of it with ``weight``
    [D].
    """
    rows, width = residual.shape
    shares = 1 if update.ndim == 2 else update.shape[0]
    _add_norm[(rows,)](
        residual, update, weight, normed, normed if scale is None else scale, eps, width, power_of_two(width), shares,
        scale is not None, overlap(residual.device), **options(_warps(width), residual.device),
    )  # fmt: skip


def add_norm_reference(
    residual: Tensor, update: Tensor, weight: Tensor, normed: Tensor, eps: float, scale: Tensor | None = None
) -> None:
    """``add_norm`` in torch."""
    update = update.float() if update.ndim == 2 else update.float().sum(0)
    residual.copy_((residual.float() + update).to(residual.dtype))
    rounded_reference(torch.rms_norm(residual.float(), weight.shape, weight.float(), eps), normed, scale)


def inverse_rms(x: Tensor, out: Tensor, eps: float) -> None:
    """out [B] fp32 = one over the root mean square of x [B, D], for a product that multiplies by it (gated.py).

    That product's programs start on the multiprocessors that this kernel leaves free, so it takes few: those that
    would multiply a tile less than the others (8 of 132, of 512 rows of Llama-3.2-1B).
    """
    rows, width = x.shape
    dev = x.device
    _inverse_rms[(triton.cdiv(rows, _TOGETHER),)](
        x, out, eps, rows, width, _TOGETHER, min(_AT_ONCE, power_of_two(width)), overlap(dev), **options(16, dev)
    )


def inverse_rms_reference(x: Tensor, out: Tensor, eps: float) -> None:
    """``inverse_rms`` in torch."""
    out.copy_((x.float().square().mean(1) + eps).rsqrt())
