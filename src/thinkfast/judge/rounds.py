"""How many chains to begin when: a first wave that is small, waves that fit the time left, turns for many problems.

Why waves: on a CPU a decode step costs more the more rows it has, so 64 chains begun together may all miss a deadline
that 8 would have met (`tiny`, one busy core: 7 ms a step at 8 rows, 25 ms at 64). The first wave gives an answer early
and shows how long a chain takes. As soon as the time allows a full batch, everything that is left goes to the engine
in one stream, where a free row is taken at once. A GPU's step costs nearly the same for 8 rows as for 64, so there that
stream is all.

Usage: ``size = first_wave(64, rows=64, problems=1, cpu=True)``;
``next_wave(size, took=0.7, left=4.3, rest=56, rows=64)``.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

OPENING = 8
TURN = 8


def first_wave(n: int, rows: int, problems: int, cpu: bool) -> int:
    """Chains to begin with, at least one a problem, of ``n`` a problem on an engine of ``rows`` rows."""
    if rows > 1 and not cpu:
        return n * problems
    return max(problems, min(OPENING, rows, n * problems))


def next_wave(size: int, took: float, left: float, rest: int, rows: int) -> int:
    """Chains of the next wave, where ``size`` took ``took`` seconds, ``left`` are left, and ``rest`` chains.

    A step's cost grows at most in proportion to its rows, so what fits in proportion is sure to fit. Where nothing
    fits, one chain is begun all the same, to run as fast as can be: there is no better use of the time.
    """
    if rows == 1:
        return 1
    fits = size * left / max(took, 1e-9)
    return rest if fits >= min(rest, rows) else max(1, int(fits))


def share_out(size: int, begun: Sequence[int]) -> list[int]:
    """Deal ``size`` chains one by one to whoever has begun the fewest; of equals to the first."""
    shares = [0] * len(begun)
    heap = [(count, at) for at, count in enumerate(begun)]
    heapq.heapify(heap)
    for _ in range(size):
        count, at = heap[0]
        heapq.heapreplace(heap, (count + 1, at))
        shares[at] += 1
    return shares


def turns(rows: int, problems: int) -> Iterator[int]:
    """Chains that every open problem begins in its turn, without end: even while few have begun, longer later on,
    because each turn prefills the prompt again.
    """
    size = max(1, rows // problems)
    while True:
        yield size
        size = max(size, min(2 * size, TURN, rows // 2))
