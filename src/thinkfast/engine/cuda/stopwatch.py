"""Seconds that marked work takes on the device, read once it is done and never waited for.

Usage: ``began = watch.start(); ...; watch.stop(began, handle); watch.read()  # {handle: 0.012} some time later``.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

from thinkfast.engine.cache import PromptHandle


class Stopwatch:
    """Of work on the current stream, stopped in the order in which it was started; idle where ``device`` is no GPU,
    because the interpreter's calls end with their work.
    """

    def __init__(self, device: torch.device) -> None:
        self._works = device.type == "cuda"
        self._running: deque[tuple[PromptHandle, Any, Any]] = deque()

    def start(self) -> Any:
        """A mark in front of the work."""
        return self._mark() if self._works else None

    def stop(self, began: Any, name: PromptHandle) -> None:
        """A mark behind it."""
        if self._works:
            self._running.append((name, began, self._mark()))

    def read(self) -> dict[PromptHandle, float] | None:
        """Seconds of what has ended since the last reading, by name."""
        if not self._works:
            return None
        found = {}
        while self._running and self._running[0][2].query():
            name, began, ended = self._running.popleft()
            found[name] = 1e-3 * began.elapsed_time(ended)
        return found

    def _mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
