"""Allocators: which problem the next chain is spent on.

* `Uniform`: whoever has begun the fewest.
* `Promising`: where a chain is most likely to change an answer into a right one, per token it costs. A problem's worth
  is P(its leader is overtaken within a few chains) times P(the leader of such a vote is right) over the mean tokens of
  its chains, shared among the chains it has in flight. A settled vote is worth nothing, for nothing will change; a
  hopeless one, with as many answers as chains, is worth little, for a new leader would be no better.
* `Learned`: where another chain raised the share of right answers most, per token, on the log that the model's
  calibration was fitted on (`gains`).

Usage: ``counts = Promising().share(polls, 5)``; your own: a class with ``name`` and ``share``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from thinkfast.errors import InputError
from thinkfast.judge.confidence import Calibration
from thinkfast.judge.deciding import stays
from thinkfast.judge.gains import Gains

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
        return _by_worth(self.worth, self.opening, polls, count)

    def worth(self, poll: Poll) -> float:
        """Chance of a change for the better, per token."""
        leader = poll.tally.leader
        if leader is None:
            return 0.25 / poll.mean_tokens
        right = poll.confidence if poll.confidence is not None else leader.share
        change = max(1 - stays(poll.tally, self.ahead), self.floor)
        return change * right / poll.mean_tokens


@dataclass(frozen=True, slots=True)
class Learned:
    """Deals to the problem whose vote gains most by one more chain per token; every problem first has ``opening``."""

    gains: Gains
    opening: int = 2
    name: str = "learned"

    def share(self, polls: Sequence[Poll], count: int) -> list[int]:
        return _by_worth(lambda poll: self.gains.of(poll.tally) / poll.mean_tokens, self.opening, polls, count)


def _by_worth(worth: Callable[[Poll], float], opening: int, polls: Sequence[Poll], count: int) -> list[int]:
    """To every problem ``opening`` chains first, then to the greatest ``worth``, shared among its chains in flight."""
    first = [max(0, min(poll.left, opening - poll.begun)) for poll in polls]
    if sum(first):
        opened = _deal([float(poll.begun) for poll in polls], [1.0] * len(polls), polls, first, count)
        count -= sum(opened)
    else:
        opened = [0] * len(polls)
    if not count:
        return opened
    costs = [1 / max(worth(poll), 1e-12) for poll in polls]
    flying = [poll.begun - poll.finished + more for poll, more in zip(polls, opened, strict=True)]
    left = [poll.left - more for poll, more in zip(polls, opened, strict=True)]
    at = [cost * (fly + 1) for cost, fly in zip(costs, flying, strict=True)]
    rest = _deal(at, costs, polls, left, count)
    return [a + b for a, b in zip(opened, rest, strict=True)]


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


def find_allocator(name: str | Allocator, calibration: Calibration | None = None) -> Allocator:
    """An allocator by name, "uniform", "posterior" or "learned" from ``calibration``, or the allocator itself.

    Errors: InputError for an unknown name, and for "learned" where nothing was learned.
    """
    if not isinstance(name, str):
        return name
    if name == "learned":
        if calibration is None or not calibration.gains.table:
            raise InputError(
                "the allocator 'learned' has nothing to go by: the model's calibration lacks gains",
                remedy="fit one with thinkfast calibrate, or use the allocator 'posterior'",
            )
        return Learned(calibration.gains)
    known = {each.name: each for each in (UNIFORM, Promising())}
    if name not in known:
        raise InputError(f"there is no allocator {name!r}", remedy=f"use one of {', '.join(known)}, learned")
    return known[name]
