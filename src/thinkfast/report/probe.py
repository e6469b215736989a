"""What this machine can do, measured in about a second: bandwidth by working set, matrix rate, memory of a run.

Why measured: a share of a data sheet's figure says as much about the data sheet as about the engine.

Usage: ``machine = machine_profile("cpu", torch.float32); machine.peak``.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from thinkfast.provenance import machine as machine_facts
from thinkfast.report.roofline import Machine

MIB = 2**20
# On a CPU from what a core's own cache holds to what none does; on a GPU only the memory matters.
CPU_SETS, GPU_SETS = (2 * MIB, 12 * MIB, 48 * MIB, 192 * MIB), (1024 * MIB,)
CPU_SIDES, GPU_SIDES = (256, 768), (8192,)


def machine_profile(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seconds: float = 1.0,
    sets: tuple[int, ...] | None = None,
) -> Machine:
    """Measure ``device`` with the threads that torch uses now, in ``dtype``, for about ``seconds`` altogether.

    The best of several tries counts: a neighbour's load makes a machine slower, never faster. Bandwidth is that of
    whichever is faster, a sum (one read) or a copy (one read, one write), over ``sets`` bytes.
    """
    device = torch.device(device)
    cuda = device.type == "cuda"
    sizes = sets or (GPU_SETS if cuda else CPU_SETS)
    sides = GPU_SIDES if cuda else CPU_SIDES
    share = seconds / (2 * len(sizes) + len(sides))
    rates = []
    for size in sizes:
        source = torch.ones(size // dtype.itemsize, dtype=dtype, device=device)
        half = source.numel() // 2
        read = source.numel() * dtype.itemsize / _fastest(source.sum, device, share)
        a, b = source[:half], source[half : 2 * half]
        moved = 2 * half * dtype.itemsize / _fastest(lambda a=a, b=b: b.copy_(a), device, share)  # type: ignore[misc]
        rates.append((float(size), max(read, moved)))
        del source, a, b
    peak = 0.0
    for side in sides:
        matrix = torch.full((side, side), 1e-3, dtype=dtype, device=device)
        peak = max(peak, 2.0 * side**3 / _fastest(lambda m=matrix: m @ m, device, share))  # type: ignore[misc]
    facts = machine_facts()
    return Machine(str(facts["accelerator"] if cuda else facts["cpu"]), peak, tuple(rates))


def synchronize(device: torch.device) -> None:
    """Wait for the device; a CPU has nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _fastest(work: Callable[[], Tensor], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest call within ``seconds``, of two after the first at least."""
    work()
    best, calls, end = float("inf"), 0, time.perf_counter() + seconds
    while calls < 2 or time.perf_counter() < end:
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        best, calls = min(best, time.perf_counter() - began), calls + 1
    return best


class PeakMemory:
    """Most memory held during a `with` block beyond what was held at its start.

    On a GPU what torch allocated; on Linux the resident memory of this process, which counts memory that an earlier
    block gave back to the allocator but not to the system as held. ``bytes`` is None where the system does not tell.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: int | None = None
        self.bytes: int | None = None

    def __enter__(self) -> Self:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        elif _reset_peak():
            self._before = _status("VmRSS")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        cuda = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) if cuda else _status("VmHWM")
        if self._before is not None and peak is not None:
            self.bytes = max(0, peak - self._before)


def _reset_peak() -> bool:
    """Make VmHWM start anew (man 5 proc, clear_refs); False where that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
