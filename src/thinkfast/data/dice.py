"""Dice: the project's own stable draws, so that problem 7 of a split is the same problem on every Python.

Only `random.Random(int).random()` is promised by the standard library to stay the same between versions;
`choice`, `sample` and `shuffle` are not. Everything here is built on that one method.

Usage: `Dice(3).between(2, 9)`
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """A seeded source of draws; equal seeds give equal draws in every process and Python version."""

    __slots__ = ("_random",)

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    @classmethod
    def of(cls, *parts: object) -> Dice:
        """Dice named by any printable parts, e.g. `Dice.of(seed, split, index)`; uses blake2b, never `hash()`."""
        text = "\x1f".join(map(str, parts)).encode()
        return cls(int.from_bytes(blake2b(text, digest_size=8).digest(), "little"))

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        return int(self._random() * n)

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high], both ends included; `low` when the range is empty."""
        return low + int(self._random() * max(1, high - low + 1))

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self._random() < p

    def pick(self, items: Sequence[T]) -> T:
        """One item."""
        return items[int(self._random() * len(items))]

    def some(self, items: Sequence[T], k: int) -> tuple[T, ...]:
        """Draw k distinct items in random order (Fisher-Yates, stopped after k)."""
        pool = list(items)
        n = len(pool)
        for i in range(k):
            j = i + int(self._random() * (n - i))
            pool[i], pool[j] = pool[j], pool[i]
        return tuple(pool[:k])
