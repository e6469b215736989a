"""A feed-forward block's gate, up and SwiGLU in one product of many rows, where arithmetic is what takes the time.

cuBLAS writes gate and up, which a second kernel reads and writes again. Here a program's tile holds the same columns of
both, so that it can finish them: the weight is read as two halves of lines (a tensor descriptor of three dimensions),
which lie in shared memory as one operand of the tensor cores. Programs are as many as there are multiprocessors and
take tiles in turn, the next one's operands on their way while one is written.

Legend: B rows, F feed-forward width, K inputs.

Usage: ``if serves(rows, weight): gated(x, weight, out)``.
Source: SwiGLU, arXiv 2002.05202; its fusion into a product's epilogue is CUTLASS's dual GEMM.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from thinkfast.kernels.triton.launch import multiprocessors, options, overlap, trigger, wait
from thinkfast.kernels.triton.product import Cut, can_cut
from thinkfast.kernels.triton.silu import silu

# Four stages take 224 of the 227 KiB that a block may have; three are 2 % of a whole step slower (H100, docs/lab.md).
TILE = Cut(128, 128, 64, 1, 8, 4)
# Tiles of rows that are done with one tile of the weight before the next: more would not stay in L2 (a prefill's).
_TOGETHER = 16
# What of the multiprocessors' time has to be of use: a last round that fills a third of them is left to cuBLAS.
_ENOUGH = 0.9


def fills(rows: int, width: int, device: torch.device, tile: Cut = TILE) -> bool:
    """Whether ``rows`` rows of ``width`` outputs come in tiles that keep the chip busy to the end."""
    tiles = triton.cdiv(rows, tile.rows) * triton.cdiv(width, tile.outputs)
    there = triton.cdiv(tiles, multiprocessors(device)) * multiprocessors(device) * tile.rows * tile.outputs
    return bool(rows * width >= _ENOUGH * there)


def serves(rows: int, weight: Tensor) -> bool:
    """Whether ``gated`` can multiply with ``weight`` [2 F, K], and is what ``rows`` rows should be multiplied by."""
    width, k = weight.shape[0] // 2, weight.shape[1]
    return can_cut(weight, width, k) and fills(rows, width, weight.device)


@triton.jit(do_not_specialize=["B"])
def _gated(
    X, W, OUT, INVERSE, B, F, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TOGETHER: tl.constexpr,
    UNDIVIDED: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    tm = tl.cdiv(B, BM)
    band = TOGETHER * tl.cdiv(F, BN)
    if not UNDIVIDED:
        wait(PDL)
    trigger(PDL)
    for tile in tl.range(tl.program_id(0), tm * tl.cdiv(F, BN), tl.num_programs(0), flatten=True):
        # Programs that read the same lines of the weight run side by side.
        first = tile // band * TOGETHER
        side = tl.minimum(tm - first, TOGETHER)
        m = first + tile % band % side
        n = tile % band // side
        acc = tl.zeros((BM, 2 * BN), tl.float32)
        for k in tl.range(0, K, BK, num_stages=STAGES):
            w = tl.reshape(W.load([0, n * BN, k]), (2 * BN, BK))
            acc = tl.dot(X.load([m * BM, k]), w.T, acc, input_precision="ieee")
        gate, up = tl.split(tl.permute(tl.reshape(acc, (BM, 2, BN)), (0, 2, 1)))
        if UNDIVIDED:
            # The kernel in front makes these numbers beside this one, which it lets in when the rows are there.
            wait(PDL)
            i = m * BM + tl.arange(0, BM)
            inverse = tl.load(INVERSE + i, mask=i < B, other=0.0)[:, None]
            gate *= inverse
            up *= inverse
        OUT.store([m * BM, n * BN], (silu(gate) * up).to(OUT.dtype))


def gated(x: Tensor, weight: Tensor, out: Tensor, tile: Cut = TILE, inverse: Tensor | None = None) -> None:
    """out [B, F] = silu(gate) * up of x [B, K] times weight [2 F, K], gate above up; what `product.can_cut` allows.
    Its reference is product.py's.

    ``inverse`` [B] fp32: what gate and up of a row have yet to be multiplied by, of ``norm.inverse_rms``, which has to
    be the kernel in front: x is read before it has ended, but not before it has waited for what wrote x.
    """
    rows, k = x.shape
    width, dev = out.shape[1], x.device
    tiles = triton.cdiv(rows, tile.rows) * triton.cdiv(width, tile.outputs)
    _gated[(min(tiles, multiprocessors(dev)),)](
        TensorDescriptor.from_tensor(x, [tile.rows, tile.inputs]),
        TensorDescriptor.from_tensor(weight.view(2, width, k), [2, tile.outputs, tile.inputs]),
        TensorDescriptor.from_tensor(out, [tile.rows, tile.outputs]),
        x if inverse is None else inverse, rows, width, k, tile.rows, tile.outputs, tile.inputs, _TOGETHER,
        inverse is not None, tile.stages, overlap(dev), **options(tile.warps, dev, tile.stages),
    )  # fmt: skip
