from __future__ import annotations

import mmap
import time

import pytest
import torch

from thinkfast.report.probe import MIB, PeakMemory, machine_profile


def test_a_machine_has_plausible_rates() -> None:
    began = time.perf_counter()
    machine = machine_profile(seconds=0.1, sets=(MIB, 8 * MIB))
    assert time.perf_counter() - began < 5
    assert [size for size, _ in machine.rates] == [MIB, 8 * MIB]
    assert all(1e7 < rate < 1e13 for _, rate in machine.rates)
    assert 1e8 < machine.peak < 1e14
    assert machine.name


def test_peak_memory_sees_what_a_block_held_and_gave_back() -> None:
    with PeakMemory(torch.device("cpu")) as none:
        pass
    with PeakMemory(torch.device("cpu")) as some:
        # Mapped, not allocated: an allocator may still hold as much from an earlier test, which is no new memory.
        held = torch.frombuffer(mmap.mmap(-1, 64 * MIB), dtype=torch.uint8).fill_(1)
        del held
    if some.bytes is None:
        pytest.skip("this system does not let a process reset its peak")
    assert none.bytes is not None
    assert none.bytes < 16 * MIB
    assert 60 * MIB < some.bytes < 100 * MIB
