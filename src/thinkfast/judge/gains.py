"""Gains: what another chain was worth to a vote that stood like this, on problems whose answers are known.

Why: whether a vote will change says little; whether it will change for the better is what counts. At one to one the
leader is a guess and one chain decides; at three to nothing nothing will happen; where all chains disagree a new leader
would be no better. How much so depends on the model, so it is counted in a sample log of problems for development.

A vote stands at (n, a, b): chains, the leader's, the runner-up's. Its gain is the most that k more chains raised the
share of right leaders by, per chain, over k up to a few: one chain alone never turns three to one.

Usage: ``gains = fit_gains(problems); gains.of(tally)``.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from thinkfast.judge.tally import Tally

State = tuple[int, int, int]
AHEAD = (1, 2, 3, 4, 6, 8)
ORDERS = 20  # random orders of each problem's chains
PRIOR = 40  # problems' worth of no gain that every state begins with
LONGEST = 24  # chains of a problem that are read
STRANGE = 0.7  # of the gain of the state most like one that was never seen
_NONE = 1e-5


@dataclass(frozen=True, slots=True)
class Gains:
    """Gain per chain by state."""

    table: Mapping[State, float]
    _near: dict[State, float] = field(default_factory=dict, compare=False, repr=False)

    def of(self, tally: Tally) -> float:
        """The gain of one more chain for the vote in ``tally``, never quite nothing."""
        leaders = tally.standings()[:2]
        counts = [round(standing.share * tally.total) for standing in leaders] + [0, 0]
        return self.at((round(tally.total), counts[0], counts[1]))

    def at(self, state: State) -> float:
        """The gain at a state, or near it."""
        if state in self.table:
            return max(self.table[state], _NONE)
        if state not in self._near:
            nearest = min(self.table, key=lambda known: _apart(state, known))
            self._near[state] = max(STRANGE * self.table[nearest], _NONE)
        return self._near[state]


def _apart(one: State, other: State) -> tuple[int, int, int]:
    (n, a, b), (m, c, d) = one, other
    return abs(n - m) + 2 * abs((a - b) - (c - d)) + abs(a - c), m, c


def fit_gains(problems: Iterable[Sequence[tuple[str | None, bool]]], seed: int = 0) -> Gains:
    """From the chains of many problems, each its key and whether it is right."""
    rng = random.Random(seed)
    changes: dict[State, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for chains in problems:
        right = {key for key, good in chains if good}
        for _ in range(ORDERS):
            some = rng.sample(chains, min(LONGEST, len(chains)))
            states = list(_states([key for key, _ in some]))
            for n, (state, leader) in enumerate(states):
                for k in AHEAD:
                    if n + k < len(states):
                        changes[state][k].append((states[n + k][1] in right) - (leader in right))
    table = {
        state: round(max(sum(of) / (len(of) + PRIOR * ORDERS) / k for k, of in each.items()), 6)
        for state, each in changes.items()
    }
    return Gains(table)


def _states(keys: Sequence[str | None]) -> Iterable[tuple[State, str | None]]:
    """How the vote stood, and who led, after none, one, two, ... of the chains."""
    counts: Counter[str] = Counter()
    first: dict[str, int] = {}
    yield (0, 0, 0), None
    for n, key in enumerate(keys, 1):
        if key is not None:
            counts[key] += 1
            first.setdefault(key, n)
        order = sorted(counts, key=lambda k: (-counts[k], first[k]))[:2]
        top = [counts[k] for k in order] + [0, 0]
        yield (n, top[0], top[1]), order[0] if order else None
