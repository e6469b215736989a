"""How the kernels are launched: overlapped with the kernel before them where the chip can, plain under the interpreter.

Programmatic dependent launch lets a kernel's blocks start while the kernel before still drains. Every kernel here
waits (``wait``) before it touches what an earlier kernel of the step wrote or reads; what it loads before that (row
tables, weights, states) is written by other steps only, or was there before the kernel in front let this one begin: one
of cuBLAS's, which begins and ends alone (a residual, in mixer_kernels.prepare), or one that waits before it triggers
(norm.inverse_rms, for gated.py).

Usage: ``kernel[grid](..., PDL=overlap(x.device), **options(4, x.device))``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime import driver

from thinkfast.kernels.available import interpreting


@cache
def overlap(device: torch.device) -> bool:
    """Whether kernels on ``device`` may start before the one in front has ended (Hopper and later)."""
    return not interpreting() and torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a block may have on a GPU, named with its index as a tensor's device is."""
    return int(driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


@cache
def multiprocessors(device: torch.device) -> int:
    """How many ``device`` has; four under the interpreter."""
    return 4 if interpreting() else int(torch.cuda.get_device_properties(device).multi_processor_count)


def options(warps: int, device: torch.device, stages: int | None = None) -> dict[str, Any]:
    """Launch options of a kernel with ``warps`` warps a block and ``stages`` of software pipelining."""
    found: dict[str, Any] = {"num_warps": warps}
    if stages is not None:
        found["num_stages"] = stages
    if overlap(device):
        found["launch_pdl"] = True
    return found


def power_of_two(size: int) -> int:
    """The smallest power of two that holds ``size``."""
    return 1 << max(0, size - 1).bit_length()


@triton.jit
def wait(PDL: tl.constexpr):
    """Wait until everything before this kernel has ended and its writes are visible."""
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def trigger(PDL: tl.constexpr):
    """Let the next kernel's blocks start as this one's make room."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
