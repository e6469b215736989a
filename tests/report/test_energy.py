from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

from thinkfast.report.energy import CpuCounters, GpuPower, energy_meter


def counters(root: Path, *values: int) -> None:
    for i, value in enumerate(values):
        folder = root / f"intel-rapl:{i}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "energy_uj").write_text(f"{value}\n")
        (folder / "max_energy_range_uj").write_text("999999999\n")


def test_counters_of_all_packages_are_summed_and_may_wrap(tmp_path: Path) -> None:
    counters(tmp_path, 5_000_000, 999_000_000)
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of package 0, which has it already
    with CpuCounters(tmp_path) as meter:
        mark = meter.mark()
        counters(tmp_path, 8_000_000, 1_000_000)
        assert meter.since(mark) == pytest.approx(3 + 2)
        (tmp_path / "intel-rapl:1" / "energy_uj").write_text("no")
        assert meter.since(mark) is None


def test_no_counters_no_figure(tmp_path: Path) -> None:
    with CpuCounters(tmp_path) as meter:
        assert meter.since(meter.mark()) is None


def power(tmp_path: Path, lines: str) -> GpuPower:
    """A driver that tells a line every 10 ms."""
    script = tmp_path / "smi.py"
    script.write_text(
        f"import sys, time\nfor line in {lines!r}.split() * 1000:\n    print(line, flush=True)\n    time.sleep(0.01)\n"
    )
    return GpuPower(torch.device("cpu"), (sys.executable, str(script)))


def test_power_times_seconds(tmp_path: Path) -> None:
    with power(tmp_path, "100 300") as meter:
        before = time.monotonic()
        while meter.since(before) is None:  # until it has started
            assert time.monotonic() - before < 20
            time.sleep(0.01)
        mark, began = meter.mark(), time.monotonic()
        assert meter.since(mark) is None
        time.sleep(0.5)
        joules, took = meter.since(mark), time.monotonic() - began
    assert joules is not None
    assert 150 < joules / took < 250


@pytest.mark.parametrize("lines", ["[N/A]", ""])
def test_a_driver_that_does_not_tell(tmp_path: Path, lines: str) -> None:
    with power(tmp_path, lines) as meter:
        mark = meter.mark()
        time.sleep(0.3)
        assert meter.since(mark) is None


def test_no_driver() -> None:
    with GpuPower(torch.device("cpu"), ("/no/such/program",)) as meter:
        assert meter.since(meter.mark()) is None
    assert isinstance(energy_meter(torch.device("cpu")), CpuCounters)
