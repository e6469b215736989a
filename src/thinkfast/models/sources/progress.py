"""What a long fetch or conversion is doing, on stderr: rewritten in place on a terminal, a line now and then elsewhere.

Usage: ``show = Progress("smollm2"); show("downloading"); show.done("ready")``.
"""

from __future__ import annotations

import sys
import time

EVERY = 10.0  # seconds between lines where stderr is a file


class Progress:
    """Callable with what is being done; ``step`` and ``done`` write lines that stay."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._last = time.monotonic()
        self._open = False

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if sys.stderr.isatty():
            if now - self._last > 0.1:
                sys.stderr.write(f"\r\033[K{self.title}: {text}")
                sys.stderr.flush()
                self._open, self._last = True, now
        elif now - self._last > EVERY:
            self.line(text)

    def line(self, text: str) -> None:
        """A line that stays."""
        sys.stderr.write(f"{chr(13) + chr(27) + '[K' if self._open else ''}{self.title}: {text}\n")
        sys.stderr.flush()
        self._open, self._last = False, time.monotonic()

    def close(self) -> None:
        """Take away the line in place, as before an error message."""
        if self._open:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
            self._open = False
