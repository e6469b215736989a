"""Matrix products of up to 128 rows, which mostly read weights: begun before their turn, and cut to keep the chip busy.

cuBLAS starts to read a weight when the kernel in front has ended, and three kernels of a layer leave half the
multiprocessors without work. These are launched while the kernel in front still runs, ask for their first columns
(cp.async.bulk.prefetch.L2) as soon as they have room, and only then wait for their input. K is cut into shares, which
the kernel behind adds up in order (norm.py); SwiGLU's gate is done before anything is written. From 256 rows on
arithmetic is what takes the time, and cuBLAS is faster (docs/lab.md).

Legend: B rows, N outputs, K inputs, R shares of K.

Usage: ``product(x, weight, out, cut)`` with the cuts of ``cuts(rows)``.
Source: split-K and stream-K, arXiv 2301.03598.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from thinkfast.kernels.available import interpreting
from thinkfast.kernels.triton.launch import options, overlap, shared_memory, trigger, wait
from thinkfast.kernels.triton.silu import silu

# Bytes of each line of a weight that are asked for before the kernel's turn: 256 to 1,024 are the same within 1 %, all
# of a line makes later requests queue behind (H100, 20 % slower).
_AHEAD = 512
_ALIGNED = 16
# Bytes of shared memory that the largest tile needs, gated.py's.
_ROOM = 224 * 1024 + 32


@dataclass(frozen=True, slots=True)
class Cut:
    """A program's tile of ``rows`` x ``outputs``, ``inputs`` at a time; K in ``shares``."""

    rows: int
    outputs: int
    inputs: int
    shares: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Cuts:
    """How each of a step's products is cut, None where cuBLAS does it; ``into`` is a mixer's first. Only what a norm
    follows comes in several shares.
    """

    into: Cut | None = None
    out: Cut | None = None
    gate_up: Cut | None = None
    down: Cut | None = None
    head: Cut | None = None


# Measured on an H100 with Llama-3.2-1B's widths; docs/lab.md has what else was tried.
_FEW = Cuts(
    Cut(16, 32, 128, 1, 4, 6), Cut(16, 64, 128, 4, 4, 4), Cut(16, 64, 128, 1, 4, 3), Cut(16, 64, 128, 4, 4, 4),
    Cut(16, 128, 128, 1, 4, 4),
)  # fmt: skip
_SOME = Cuts(
    Cut(64, 32, 128, 1, 4, 6), Cut(64, 64, 128, 4, 4, 4), Cut(64, 64, 128, 1, 4, 3), Cut(64, 64, 128, 4, 4, 4),
    Cut(64, 128, 128, 1, 4, 4),
)  # fmt: skip
_MANY = Cuts(
    Cut(128, 64, 128, 1, 4, 3), Cut(128, 64, 128, 4, 4, 3), Cut(128, 64, 128, 1, 8, 3), Cut(128, 128, 64, 4, 4, 4),
    Cut(128, 128, 128, 1, 8, 3),
)  # fmt: skip
SHARES, MOST_ROWS = 4, 128


def can_cut(weight: Tensor, *widths: int) -> bool:
    """Whether weights like ``weight`` with ``widths`` inputs can be read in tiles, and by tensor cores."""
    # The interpreter multiplies bf16 as the integers that carry it; fp32 has no tensor cores and no room, and what came
    # after Hopper for desks has half its shared memory.
    device = weight.device
    works = interpreting() or (overlap(device) and weight.element_size() == 2 and shared_memory(device) >= _ROOM)
    return works and all(width * weight.element_size() % _ALIGNED == 0 for width in widths)


def cuts(rows: int) -> Cuts:
    """How products of ``rows`` rows are cut."""
    return _FEW if rows <= 16 else _SOME if rows <= 64 else _MANY if rows <= MOST_ROWS else Cuts()


@triton.jit
def _ask(WEIGHT, first, lines, K, start, N, LANES: tl.constexpr, BYTES: tl.constexpr):
    """Ask for BYTES from column ``start`` on of each of ``lines`` lines (at most LANES) from line ``first`` on."""
    i = tl.arange(0, LANES)
    width = K * (WEIGHT.dtype.element_ty.primitive_bitwidth // 8)
    offset = start * (WEIGHT.dtype.element_ty.primitive_bitwidth // 8)
    at = WEIGHT.to(tl.int64) + (first + i).to(tl.int64) * width + offset
    size = tl.where((i < lines) & (first + i < N), tl.maximum(tl.minimum(BYTES, width - offset), 0), 0)
    tl.inline_asm_elementwise(
        """{
        .reg .pred p;
        setp.gt.s32 p, $2, 0;
        @p cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.u32 $0, 0;
        }""",
        "=r,l,r",
        [at, size],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit(do_not_specialize=["B"])
def _product(
    X, W, OUT, BIAS, WEIGHT, XS, WS, B, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, R: tl.constexpr, GATED: tl.constexpr, BIASED: tl.constexpr,
    SCALED: tl.constexpr, LANES: tl.constexpr, AHEAD: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # Programs that read the same lines run side by side.
    tm = tl.cdiv(B, BM)
    m = tl.program_id(0) % tm
    n = (tl.program_id(0) // tm) % tl.cdiv(N, BN)
    r = tl.program_id(0) // tm // tl.cdiv(N, BN)
    # Whole blocks of inputs a share; what a block has beyond K is read as zeros.
    share = tl.cdiv(tl.cdiv(K, BK), R) * BK
    start = r * share
    end = tl.minimum(start + share, K)
    if PDL:
        _ask(WEIGHT, n * BN, BN, K, start, N, LANES, AHEAD)
        if GATED:
            _ask(WEIGHT, N + n * BN, BN, K, start, 2 * N, LANES, AHEAD)
    wait(PDL)
    trigger(PDL)
    i = m * BM + tl.arange(0, BM)
    j = n * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    if GATED:
        up = tl.zeros((BM, BN), tl.float32)
        for k in tl.range(start, end, BK, num_stages=STAGES):
            x = X.load([m * BM, k])
            acc = tl.dot(x, W.load([n * BN, k]).T, acc, input_precision="ieee")
            up = tl.dot(x, W.load([N + n * BN, k]).T, up, input_precision="ieee")
        if SCALED:
            scale = tl.load(XS + i, mask=i < B, other=0.0)[:, None]
            acc *= scale * tl.load(WS + j, mask=j < N, other=0.0)[None, :]
            up *= scale * tl.load(WS + N + j, mask=j < N, other=0.0)[None, :]
        acc = silu(acc) * up
    else:
        for k in tl.range(start, end, BK, num_stages=STAGES):
            acc = tl.dot(X.load([m * BM, k]), W.load([n * BN, k]).T, acc, input_precision="ieee")
        if SCALED:
            acc *= tl.load(XS + i, mask=i < B, other=0.0)[:, None] * tl.load(WS + j, mask=j < N, other=0.0)[None, :]
    if BIASED:
        acc += tl.load(BIAS + j, mask=(j < N) & (r == 0), other=0.0).to(tl.float32)[None, :]
    at = (r * B + i)[:, None].to(tl.int64) * N + j[None, :]
    tl.store(OUT + at, acc.to(OUT.dtype.element_ty), mask=(i < B)[:, None] & (j < N)[None, :])


def product(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    cut: Cut,
    bias: Tensor | None = None,
    gated: bool = False,
    scales: tuple[Tensor, Tensor] | None = None,
) -> None:
    """x [B, K] times weight [N, K] into out [B, N], or its shares into out [R, B, N], whose sum it is. ``gated``:
    weight [2 N, K] holds gate and up, and out = silu(gate) * up, in one share. ``scales`` [B, 1] and [1, N] of x and
    weight in eight bits (models/fp8.py), where lines of zeros may follow the last output.
    """
    rows, k = x.shape
    n, dev = out.shape[-1], x.device
    of_x, of_weight = (out, out) if scales is None else scales
    tiles = triton.cdiv(rows, cut.rows) * triton.cdiv(n, cut.outputs) * cut.shares
    _product[(tiles,)](
        TensorDescriptor.from_tensor(x, [cut.rows, cut.inputs]),
        TensorDescriptor.from_tensor(weight, [cut.outputs, cut.inputs]), out, out if bias is None else bias, weight,
        of_x, of_weight, rows, n, k, cut.rows, cut.outputs, cut.inputs, cut.shares, gated, bias is not None,
        scales is not None, 32 * cut.warps, _AHEAD, cut.stages, overlap(dev), **options(cut.warps, dev),
    )  # fmt: skip


def product_reference(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    cut: Cut,
    bias: Tensor | None = None,
    gated: bool = False,
    scales: tuple[Tensor, Tensor] | None = None,
) -> None:
    """``product`` in torch; a single share, the others zero."""
    y = F.linear(x.float(), weight.float())
    if scales is not None:
        y = y * scales[0] * scales[1]
    if bias is not None:
        y = y + bias.float()
    if gated:
        gate, up = y.chunk(2, -1)
        y = F.silu(gate) * up
    if cut.shares == 1:
        out.copy_(y)
    else:
        out.zero_()
        out[0] = y
