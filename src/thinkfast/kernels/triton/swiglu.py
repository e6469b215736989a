"""SwiGLU's gate: silu(gate) * up from one projection's output, in one pass (arXiv 2002.05202).

Legend: B rows, F feed-forward width.

Usage: ``swiglu(both, out)``.
"""

from __future__ import annotations

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from thinkfast.kernels.triton.launch import options, overlap, power_of_two, trigger, wait
from thinkfast.kernels.triton.rounding import rounded_reference, store_row
from thinkfast.kernels.triton.silu import silu


@triton.jit
def _swiglu(BOTH, OUT, SCALE, FF, BF: tl.constexpr, FP8: tl.constexpr, PDL: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BF + tl.arange(0, BF)
    wait(PDL)
    trigger(PDL)
    gate = tl.load(BOTH + b * 2 * FF + i, mask=i < FF, other=0.0).to(tl.float32)
    up = tl.load(BOTH + b * 2 * FF + FF + i, mask=i < FF, other=0.0).to(tl.float32)
    store_row(OUT, SCALE, b, i, FF, silu(gate) * up, FP8)


def swiglu(both: Tensor, out: Tensor, scale: Tensor | None = None) -> None:
    """out [B, F] = silu(both[:, :F]) * both[:, F:]; with ``scale`` [B, 1] in e4m3 (models/fp8.py)."""
    rows, width = out.shape
    # A scale needs its whole row in one program.
    block = power_of_two(width) if scale is not None else min(2048, power_of_two(width))
    warps = 16 if block > 4096 else 8 if block >= 2048 else 4
    _swiglu[(rows, triton.cdiv(width, block))](
        both, out, out if scale is None else scale, width, block, scale is not None, overlap(out.device),
        **options(warps, out.device),
    )  # fmt: skip


def swiglu_reference(both: Tensor, out: Tensor, scale: Tensor | None = None) -> None:
    """``swiglu`` in torch."""
    gate, up = both.float().chunk(2, -1)
    rounded_reference(F.silu(gate) * up, out, scale)
