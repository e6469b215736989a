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


@triton.jit
def _swiglu(BOTH, OUT, FF, BF: tl.constexpr, PDL: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BF + tl.arange(0, BF)
    wait(PDL)
    trigger(PDL)
    gate = tl.load(BOTH + b * 2 * FF + i, mask=i < FF, other=0.0).to(tl.float32)
    up = tl.load(BOTH + b * 2 * FF + FF + i, mask=i < FF, other=0.0).to(tl.float32)
    tl.store(OUT + b * FF + i, (gate * tl.sigmoid(gate) * up).to(OUT.dtype.element_ty), mask=i < FF)


def swiglu(both: Tensor, out: Tensor) -> None:
    """out [B, F] = silu(both[:, :F]) * both[:, F:]."""
    rows, width = out.shape
    block = min(2048, power_of_two(width))
    _swiglu[(rows, triton.cdiv(width, block))](
        both, out, width, block, overlap(out.device), **options(8 if block == 2048 else 4, out.device)
    )


def swiglu_reference(both: Tensor, out: Tensor) -> None:
    """``swiglu`` in torch."""
    gate, up = both.float().chunk(2, -1)
    out.copy_(F.silu(gate) * up)
