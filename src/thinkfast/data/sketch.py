"""A sketch is a procedural problem before it has words: who, what, which numbers, and the exact answer.

Why apart from the words: the answer comes from integer arithmetic on the sketch and never from the text, and a
sketch's `signature` (independent of phrasing, sentence order and distractors) decides the split, so that no
rewording of a test problem can occur in train.

Usage: `sketch.signature()`, `equation(3, "*", 14)`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from thinkfast.data.dice import Dice

Move = tuple[str, int, int]
"""(kind, x, y): one event, e.g. ("packs", 3, 12) = three bags of twelve; y is 0 where a kind has one number."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Number sizes of one difficulty level (all ranges inclusive)."""

    small: tuple[int, int]
    """Single-digit-like factors and divisors."""
    large: tuple[int, int]
    """The other factor of a product."""
    plain: tuple[int, int]
    """Numbers that are added or taken away, and starting values."""
    cap: int
    """No value in the problem exceeds this."""


@dataclass(frozen=True, slots=True)
class Sketch:
    """One problem's structure. `words` holds names and objects by role; `moves` the ordered events with numbers."""

    family: str
    level: int
    words: tuple[str, ...]
    moves: tuple[Move, ...]
    answer: int

    def signature(self) -> bytes:
        """Canonical bytes of the structure; equal for every wording of the same problem."""
        moves = ";".join([f"{kind},{x},{y}" for kind, x, y in self.moves])
        return f"{self.family}|{','.join(self.words)}|{moves}".encode()


@dataclass(frozen=True, slots=True)
class Telling:
    """A sketch put into words: the question, and the chain of thought that solves it."""

    question: str
    chain: str


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of problem: `draw` makes sketches with exactly `level` dependent steps, `tell` puts one into words."""

    name: str
    draw: Callable[[Dice, int, Scale], Sketch]
    tell: Callable[[Sketch, Dice], Telling]


def apply(a: int, op: str, b: int) -> int:
    """Exact integer arithmetic of one step. Raises ValueError on an inexact division or an unknown operator."""
    if op == "+":
        return a + b
    if op == "-":
        return a - b
    if op == "*":
        return a * b
    if op == "/" and a % b == 0:
        return a // b
    raise ValueError(f"not an exact step: {a} {op} {b}")


def equation(a: int, op: str, b: int) -> str:
    """One written step, e.g. `equation(3, "*", 14)` is "3 * 14 = 42"."""
    return f"{a} {op} {b} = {apply(a, op, b)}"


def boxed(answer: int) -> str:
    """The marked last sentence of every chain."""
    return f"The answer is \\boxed{{{answer}}}."


def divisors(value: int, low: int, high: int) -> list[int]:
    """Divisors of `value` in [low, high] whose quotient is at least 2."""
    return [f for f in range(low, min(high, value // 2) + 1) if value % f == 0]
