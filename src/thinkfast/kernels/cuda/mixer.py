"""One Mamba step between its two projections in one kernel, of more than a few rows and states in bf16 (mixer.cu).

What it computes, and its reference, are kernels/triton/mixer.py's, which serves few rows, states of other kinds and
GPUs before Hopper. Against its two kernels this takes a fifth less time at 512 rows with d_state 16, 7 % less with 64;
at 64 rows little more than half the time of its one (H100, docs/lab.md).

Legend: B rows, H heads, K key-value heads, G = H / K, P head dim, N state, W convolution width, D inputs held.

Usage: ``mix = fused(projected, layer, state)``, and where that is not None ``mix(rows, out, number)``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from thinkfast.kernels.cuda.nvrtc import Kernel, compiled
from thinkfast.kernels.triton.launch import overlap, power_of_two, shared_memory
from thinkfast.kernels.triton.mixer import HOLD, MixerLayer, MixerRows, MixerState, Undivided

# Of rows, out [B, H P] and the layer's number.
Mix = Callable[[MixerRows, Tensor, int], None]
SOURCE = Path(__file__).with_name("mixer.cu")
# Entries of a head's state that a warp takes, registers of a multiprocessor, and those that a thread is to do with: 8
# blocks of four warps then share a multiprocessor, and more are slower.
_ENTRIES, _REGISTERS, _OF_A_THREAD = 2048, 1 << 16, 64
_MOST_THREADS = 1024
# Up to so many rows Triton's one kernel is as fast: states of up to so many entries a head.
_FEW = ((1024, 16), (1 << 30, 8))


@dataclass(frozen=True, slots=True)
class Shape:
    """The constants of mixer.cu: H, K, P, N, W, D, the residual's width or 0, and whether rows begin anywhere."""

    heads: int
    kv_heads: int
    head_dim: int
    state: int
    taps: int
    held: int
    wide: int
    odd: bool

    @classmethod
    def of(cls, projected: Tensor, layer: MixerLayer, state: MixerState, undivided: Undivided | None) -> Shape:
        """That of a call."""
        _, heads, p, n = state.ssm.shape
        wide = 0 if undivided is None else undivided.residual.shape[1]
        sizes = (heads, layer.kv_heads, p, n, state.conv.shape[1], state.held.shape[1], wide)
        return cls(*sizes, projected.stride(0) % 2 == 1)

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.heads // self.kv_heads * max(1, self.head_dim * self.state // _ENTRIES)

    @property
    def shared(self) -> int:
        """Bytes of shared memory that a block needs at most."""
        group, channels = self.heads // self.kv_heads, self.head_dim + self.state
        narrow = group * self.head_dim * self.state + self.held * channels
        narrow += (self.taps - 1) * (channels + group * self.state)
        return 2 * narrow + 4 * (group * self.state + self.threads // 32) + 256

    @property
    def served(self) -> bool:
        """Whether mixer.cu can be compiled for it."""
        p, n = self.head_dim, self.state
        return (
            self.heads % self.kv_heads == 0
            and power_of_two(p) == p >= 16
            and power_of_two(n) == n
            and 16 <= n <= 256
            and self.threads <= _MOST_THREADS
            and self.held == HOLD
            # One warp brings the rings.
            and 3 * (self.taps - 1) + self.held - 1 <= 32
            and self.wide % 8 == 0
        )

    @property
    def defines(self) -> tuple[tuple[str, int], ...]:
        """For the compiler."""
        blocks = max(1, _REGISTERS // (_OF_A_THREAD * self.threads))
        return (
            ("H", self.heads), ("K", self.kv_heads), ("P", self.head_dim), ("N", self.state), ("W", self.taps),
            ("D", self.held), ("WIDE", self.wide), ("ODD", int(self.odd)), ("BLOCKS", blocks), ("SHARED", self.shared),
        )  # fmt: skip

    def kernel(self, device: torch.device) -> Kernel | None:
        """Compiled, once; None where there is no compiler."""
        return compiled(SOURCE, "mixer", self.defines, self.shared, device)


def fused(projected: Tensor, layer: MixerLayer, state: MixerState, undivided: Undivided | None = None) -> Mix | None:
    """What does ``kernels.triton.mixer.mix`` of these for given rows, into out [B, H P], as the layer of a number; None
    where Triton's kernels are as fast, or the only ones to do it.
    """
    entries, device = state.ssm.shape[2] * state.ssm.shape[3], projected.device
    if projected.shape[0] <= next(rows for most, rows in _FEW if entries <= most):
        return None
    if not (projected.is_cuda and projected.dtype == state.ssm.dtype == torch.bfloat16 and overlap(device)):
        return None
    shape = Shape.of(projected, layer, state, undivided)
    if not shape.served or shape.shared > shared_memory(device):
        return None
    if (kernel := shape.kernel(device)) is None:
        return None

    def launch(rows: MixerRows, out: Tensor, number: int) -> None:
        residual, eps = (out, 0.0) if undivided is None else (undivided.residual, undivided.eps)
        kernel.launch(out.shape[0] * layer.kv_heads, shape.threads, (
            projected, state.conv, state.ssm, state.held, state.steps, layer.taps, layer.conv_bias, layer.rates,
            layer.dt_bias, layer.skip, layer.norm, out, residual, rows.active, rows.position, rows.drawn, rows.key,
            ctypes.c_float(layer.eps), ctypes.c_float(eps), ctypes.c_int64(projected.stride(0)),
            ctypes.c_uint32(number),
        ))  # fmt: skip

    return launch
