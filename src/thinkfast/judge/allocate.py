"""Allocators: which problem the next chain is spent on.

* `Uniform`: whoever has begun the fewest.
* `Promising`: where a chain is most likely to change an answer into a right one, per token it costs. A problem's worth
  is P(its leader is overtaken within a few chains) times P(the leader of such a vote is right) over the mean tokens of
  its chains, shared among the chains it has in flight. A settled vote is worth nothing, for nothing will change; a
  hopeless one, with as many answers as chains, is worth little, for a new leader would be no better.

Usage: ``counts = Promising().share(polls, 5)``; your own: a class with ``name`` and ``share``.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from thinkfast.errors import InputError
from thinkfast.judge.deciding import stays

if TYPE_CHECKING:
    from thinkfast.judge.poll import Poll

TURN = 4  # chains of a problem that one request begins, once it has begun as many


class Allocator(Protocol):
    """Deals chains to problems."""

    @property
    def name(self) -> str:
        """As on the command line."""
        ...

    def share(self, polls: Sequence[Poll], count: int) -> list[int]:
        """Chains for each poll, ``count`` at most in all and none beyond what a poll has ``left``."""
        ...


@dataclass(frozen=True, slots=True)
class Uniform:
    """Deals one by one to whoever has begun the fewest; of equals to the first."""

    name: str = "uniform"

    def share(self, polls: Sequence[Poll], count: int) -> list[int]:
        return _deal([float(poll.begun) for poll in polls], [1.0] * len(polls), polls, [p.left for p in polls], count)


UNIFORM = Uniform()


@dataclass(frozen=True, slots=True)
class Promising:
    """Deals to the problem of the greatest worth; every problem first has ``opening`` chains.

    ahead: chains within which a leader may be overtaken. floor: share of the worth that even a settled vote keeps.
    """

    opening: int = 3
    ahead: int = 6
    floor: float = 0.02
    name: str = "posterior"

    def share(self, polls: Sequence[Poll], count: int) -> list[int]:
        first = [max(0, min(poll.left, self.opening - poll.begun)) for poll in polls]
        if sum(first):
            opened = _deal([float(poll.begun) for poll in polls], [1.0] * len(polls), polls, first, count)
            count -= sum(opened)
        else:
            opened = [0] * len(polls)
        if not count:
            return opened
        costs = [1 / max(self.worth(poll), 1e-12) for poll in polls]
        flying = [poll.begun - poll.finished + more for poll, more in zip(polls, opened, strict=True)]
        left = [poll.left - more for poll, more in zip(polls, opened, strict=True)]
        at = [cost * (fly + 1) for cost, fly in zip(costs, flying, strict=True)]
        rest = _deal(at, costs, polls, left, count)
        return [a + b for a, b in zip(opened, rest, strict=True)]

    def worth(self, poll: Poll) -> float:
        """Chance of a change for the better, per token."""
        leader = poll.tally.leader
        if leader is None:
            return 0.25 / poll.mean_tokens
        right = poll.confidence if poll.confidence is not None else leader.share
        change = max(1 - stays(poll.tally, self.ahead), self.floor)
        return change * right / poll.mean_tokens


def _deal(
    at: Sequence[float], step: Sequence[float], polls: Sequence[Poll], left: Sequence[int], count: int
) -> list[int]:
    """Deal ``count`` to the smallest of ``at``, which then moves up by its ``step`` for each.

    One at a time at first, later up to TURN together, because every request prefills its prompt again.
    """
    shares = [0] * len(at)
    heap = [(value, place) for place, value in enumerate(at) if left[place] > 0]
    heapq.heapify(heap)
    while heap and count > 0:
        value, place = heap[0]
        begun = polls[place].begun + shares[place]
        turn = min(max(1, begun), TURN, left[place] - shares[place], count)
        shares[place] += turn
        count -= turn
        if shares[place] < left[place]:
            heapq.heapreplace(heap, (value + turn * step[place], place))
        else:
            heapq.heappop(heap)
    return shares


def find_allocator(name: str | Allocator) -> Allocator:
    """An allocator by name, "uniform" or "posterior", or the allocator itself. Errors: InputError."""
    if not isinstance(name, str):
        return name
    known = {each.name: each for each in (UNIFORM, Promising())}
    if name not in known:
        raise InputError(f"there is no allocator {name!r}", remedy=f"use one of {', '.join(known)}")
    return known[name]
