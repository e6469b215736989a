"""Pace: what a step costs, how long chains are, and so how many can still finish before the deadline.

Learned while solving, from nothing: seconds of a step by how many rows it had, tokens of the chains that have ended.
From these comes the width, the number of rows at which the most chains can be expected to finish in time. On a CPU a
step costs more the more rows it has, so 64 chains begun together may all miss a deadline that 8 would have met; on a
GPU a step costs nearly the same, and the width is all rows until no chain can finish any more.

A chain that cannot finish is not begun, and one that runs is cut where its row's seconds let more others finish.

Shapes: R running chains, L lengths.

Usage: ``pace.stepped(rows=8, seconds=0.01); pace.ended(93); pace.width(left=2.0, progress=[40, 12], limit=512)``.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

OPENING = 8  # rows on a CPU before the first chain has shown how long one is
MORE = 1.25  # a running chain is taken to become at least so much longer than it is
RECENT = 0.2  # weight of the newest timing in a running mean
WORTH = 1.02  # how much more a cut must promise, so that estimates that waver cut nothing


class Pace:
    """``rows``: most that the engine runs together; ``flat``: a step costs the same for any number of rows."""

    def __init__(self, rows: int, flat: bool) -> None:
        self.rows, self._flat = rows, flat
        self._steps: dict[int, float] = {}
        self._lengths: list[int] = []

    def stepped(self, rows: int, seconds: float) -> None:
        """A step of ``rows`` rows took ``seconds``."""
        if rows > 0:
            known = self._steps.get(rows)
            self._steps[rows] = seconds if known is None else known + RECENT * (seconds - known)

    def ended(self, tokens: int) -> None:
        """A chain came to its own end after so many tokens."""
        bisect.insort(self._lengths, tokens)

    @property
    def known(self) -> bool:
        """Whether a step and a chain have been seen."""
        return bool(self._steps and self._lengths)

    def step(self, rows: int, hopeful: bool = False) -> float:
        """Seconds of a step of ``rows`` rows: as measured, or between, or beyond, what was measured.

        Below the fewest rows measured it is less in proportion at best and the same at worst: the middle is taken, the
        best where one is ``hopeful``.
        """
        if not self._steps:
            return 0.0
        if rows in self._steps:
            return self._steps[rows]
        seen = sorted(self._steps)
        place = bisect.bisect(seen, rows)
        if place == 0:
            part = rows / seen[0]
            return self._steps[seen[0]] * (1.0 if self._flat else part if hopeful else (1 + part) / 2)
        below = seen[place - 1]
        if place == len(seen):
            return self._steps[below] * (1.0 if self._flat else rows / below)
        above = seen[place]
        part = (rows - below) / (above - below)
        return self._steps[below] * (1 - part) + self._steps[above] * part

    def width(self, left: float, progress: Sequence[int], limit: int) -> int:
        """Rows at which the most chains can be expected to finish within ``left`` seconds, those that run included.

        At least as many as run; 0 where nothing runs and nothing new would finish. progress [R]: tokens so far of the
        chains that run; limit: tokens that end any chain.
        """
        running = len(progress)
        if not math.isfinite(left):
            return self.rows
        if not self.known:
            return max(running, self.rows if self._flat else min(OPENING, self.rows))
        lengths = self._all(progress)
        widths = sorted({min(running + more, self.rows) for more in (0, *(2**e for e in range(20)))} | {self.rows})
        best, most = running, -1.0
        for rows in widths:
            step = self.step(rows, hopeful=not running)  # with nothing to lose
            tokens = left / step if step > 0 else math.inf
            new = (rows - running) * float(np.searchsorted(lengths, tokens, side="right")) / len(lengths)
            expected = new + float(self._odds(progress, tokens, limit).sum())
            if expected > (WORTH * most if most > 0 else most):
                best, most = rows, expected
        return best if most > 0 else running

    def hopeless(self, left: float, progress: Sequence[int], limit: int) -> list[int]:
        """Which of the running chains [R] to cut, so that the most of the others can be expected to finish."""
        running = len(progress)
        if not self.known or not progress or not math.isfinite(left):
            return []
        if left > self.step(running) * max(self._lengths[-1], *progress):
            return []  # all will finish: nothing to gain
        best, most, kept = running, -1.0, np.arange(running)
        for rows in range(running, 0, -1):
            tokens = left / self.step(rows) if self.step(rows) > 0 else math.inf
            odds = self._odds(progress, tokens, limit)
            order = np.argsort(-odds, kind="stable")
            expected = float(odds[order[:rows]].sum())
            if expected > (WORTH * most if rows < running else most):
                best, most, kept = rows, expected, order[:rows]
        return sorted(set(range(running)) - set(kept.tolist())) if best < running else []

    def _all(self, progress: Sequence[int]) -> NDArray[np.float64]:
        """Lengths [L] of the chains that have ended, and what those that run are taken to become: the first to end
        are the short ones.
        """
        return np.sort(np.array([*self._lengths, *(MORE * tokens for tokens in progress)], np.float64))

    def _odds(self, progress: Sequence[int], more: float, limit: int) -> NDArray[np.float64]:
        """Chances [R] that the running chains end within ``more`` tokens; 1 where the limit ends them anyway."""
        at, lengths = np.asarray(progress, np.float64), np.asarray(self._lengths, np.float64)
        begin = np.searchsorted(lengths, at, side="right")
        within = np.searchsorted(lengths, at + more, side="right") - begin
        beyond = len(lengths) - begin
        # Longer than any before it, a chain may end at any time.
        odds = np.where(beyond > 0, within / (beyond + 1), np.minimum(1.0, more / np.maximum(at, 1)) / 2)
        return np.where(at + more >= limit, 1.0, odds)
