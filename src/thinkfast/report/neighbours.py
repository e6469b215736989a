"""How many processors a stretch of work had, and how many nobody used: what tells a system that was disturbed by other
programs from one that needs less.

Usage: ``watch = Processors(); …; had, idle = watch.shares()``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
LEAST_SECONDS = 0.5
"""Of a shorter stretch the system's clock ticks say too little."""


class Processors:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._began, self._used, self._idle = time.monotonic(), time.process_time(), _idle_seconds()

    def shares(self) -> tuple[float | None, float | None]:
        """Processors that this process kept busy, and those that nobody used, on average; None where not known."""
        passed, idle = time.monotonic() - self._began, _idle_seconds()
        if passed < LEAST_SECONDS:
            return None, None
        unused = None if idle is None or self._idle is None else (idle - self._idle) / passed
        return (time.process_time() - self._used) / passed, unused

    def taken(self) -> float | None:
        """Processors that other programs had, or the machine that this one is a guest of."""
        had, idle = self.shares()
        return None if had is None or idle is None else max(0.0, (os.cpu_count() or 1) - had - idle)


def _idle_seconds() -> float | None:
    """Of all processors together since the machine started; None where the system does not tell (Linux does)."""
    try:
        words = STAT.read_text(encoding="ascii").split("\n", 1)[0].split()
        return (int(words[4]) + int(words[5])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
