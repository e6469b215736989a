"""A feed-forward block's gate, up and SwiGLU in one product of many rows, where arithmetic is what takes the time.

cuBLAS writes gate and up, which a second kernel reads and writes again. Here a program's tile holds the same columns of
both, so that it can finish them: the weight is read as two halves of lines (a tensor descriptor of three dimensions),
which lie in shared memory as one operand of the tensor cores. Programs are as many as there are multiprocessors and
take tiles in turn, the next one's operands on their way while one is written.

Legend: B rows, F feed-forward width, K inputs.

Usage: ``if fills(rows, width, device): gated(x, weight, out)``.
Source: SwiGLU, arXiv 2002.05202; its fusion into a product's epilogue is CUTLASS's dual GEMM.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from thinkfast.kernels.available import interpreting
from thinkfast.kernels.triton.launch import options, overlap, trigger, wait
from thinkfast.kernels.triton.product import Cut

# Four stages take 224 of the 227 KiB that a block may have; three are 2 % of a whole step slower (H100, docs/lab.md).
TILE = Cut(128, 128, 64, 1, 8, 4)
# What of the multiprocessors' time has to be of use: a last round that fills a third of them is left to cuBLAS.
_ENOUGH = 0.9


@cache
def _multiprocessors(device: torch.device) -> int:
    return 4 if interpreting() else torch.cuda.get_device_properties(device).multi_processor_count


def fills(rows: int, width: int, device: torch.device, tile: Cut = TILE) -> bool:
    """Whether ``rows`` rows of ``width`` outputs come in tiles that keep the chip busy to the end."""
    tiles = triton.cdiv(rows, tile.rows) * triton.cdiv(width, tile.outputs)
    there = triton.cdiv(tiles, _multiprocessors(device)) * _multiprocessors(device) * tile.rows * tile.outputs
    return bool(rows * width >= _ENOUGH * there)


@triton.jit(do_not_specialize=["B"])
def _gated(
    X, W, OUT, B, F, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr
):
    tm = tl.cdiv(B, BM)
    wait(PDL)
    trigger(PDL)
    for tile in tl.range(tl.program_id(0), tm * tl.cdiv(F, BN), tl.num_programs(0), flatten=True):
        # Programs that read the same lines of the weight run side by side.
        m = tile % tm
        n = tile // tm
        acc = tl.zeros((BM, 2 * BN), tl.float32)
        for k in tl.range(0, K, BK, num_stages=STAGES):
            w = tl.reshape(W.load([0, n * BN, k]), (2 * BN, BK))
            acc = tl.dot(X.load([m * BM, k]), w.T, acc, input_precision="ieee")
        gate, up = tl.split(tl.permute(tl.reshape(acc, (BM, 2, BN)), (0, 2, 1)))
        OUT.store([m * BM, n * BN], (gate * tl.sigmoid(gate) * up).to(OUT.dtype))


def gated(x: Tensor, weight: Tensor, out: Tensor, tile: Cut = TILE) -> None:
    """out [B, F] = silu(gate) * up of x [B, K] times weight [2 F, K], gate above up; what `product.can_cut` allows.
    Its reference is product.py's.
    """
    rows, k = x.shape
    width, dev = out.shape[1], x.device
    tiles = triton.cdiv(rows, tile.rows) * triton.cdiv(width, tile.outputs)
    _gated[(min(tiles, _multiprocessors(dev)),)](
        TensorDescriptor.from_tensor(x, [tile.rows, tile.inputs]),
        TensorDescriptor.from_tensor(weight.view(2, width, k), [2, tile.outputs, tile.inputs]),
        TensorDescriptor.from_tensor(out, [tile.rows, tile.outputs]),
        rows, width, k, tile.rows, tile.outputs, tile.inputs, tile.stages, overlap(dev),
        **options(tile.warps, dev, tile.stages),
    )  # fmt: skip
