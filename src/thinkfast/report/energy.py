"""Joules that the machine says it used: a GPU's power draw as its driver tells it, or the counters of a CPU.

A driver samples power every few dozen milliseconds, so what ran for less than a few samples has no figure. The counters
of a CPU are the package's, other processes' work included, and are often hidden from virtual machines.

Usage: ``with energy_meter(device) as meter: mark = meter.mark(); work(); joules = meter.since(mark)``.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch

EVERY_MS = 50
LEAST_SAMPLES = 3
RAPL = Path("/sys/class/powercap")


class EnergyMeter(Protocol):
    """Something that knows how much energy was used."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    def mark(self) -> object:
        """Now, for `since`."""
        ...

    def since(self, mark: object) -> float | None:
        """Joules from a mark to now; None where nobody tells, or too little time has passed."""
        ...


def energy_meter(device: torch.device) -> EnergyMeter:
    """The meter for work on ``device``."""
    return GpuPower(device) if device.type == "cuda" else CpuCounters()


class CpuCounters:
    """Running average power limit counters in micro-joules, one file a package, which wrap around."""

    def __init__(self, root: Path = RAPL) -> None:
        self._folders = sorted(path for path in root.glob("intel-rapl:*") if path.name.count(":") == 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def mark(self) -> object:
        return self._read()

    def since(self, mark: object) -> float | None:
        now = self._read()
        if not isinstance(mark, tuple) or now is None:
            return None
        return (
            float(sum((after - before) % (most + 1) for (before, _), (after, most) in zip(mark, now, strict=True)))
            / 1e6
        )

    def _read(self) -> tuple[tuple[int, int], ...] | None:
        try:
            found = tuple(
                (int((f / "energy_uj").read_text()), int((f / "max_energy_range_uj").read_text()))
                for f in self._folders
            )
        except (OSError, ValueError):
            return None
        return found or None


class GpuPower:
    """Power draw by nvidia-smi, which samples in a process of its own."""

    def __init__(self, device: torch.device, command: tuple[str, ...] = ("nvidia-smi",)) -> None:
        self._command = [
            *(*command, "--query-gpu=power.draw", "--format=csv,noheader,nounits", f"-lms={EVERY_MS}"),
            f"--id={_driver_name(device)}",
        ]
        self._process: subprocess.Popen[str] | None = None
        self._samples: list[tuple[float, float]] = []

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
            )
            threading.Thread(target=self._listen, name="thinkfast-power", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def _listen(self) -> None:
        process = self._process
        if process is None or process.stdout is None:
            return
        with contextlib.suppress(ValueError):  # "[N/A]", or closed while read
            for line in process.stdout:
                self._samples.append((time.monotonic(), float(line)))

    def mark(self) -> object:
        return time.monotonic()

    def since(self, mark: object) -> float | None:
        now = time.monotonic()
        if not isinstance(mark, float):
            return None
        watts = [power for at, power in list(self._samples) if mark <= at <= now]
        return sum(watts) / len(watts) * (now - mark) if len(watts) >= LEAST_SAMPLES else None


def _driver_name(device: torch.device) -> str:
    """What the driver calls the card, which may be hidden from torch behind another number."""
    if not torch.cuda.is_available():
        return "0"
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
