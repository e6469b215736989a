"""Many answers to one: chains, weighed by a voter, become a vote.

Policy, the same for every voter and for `report.metrics`:

* Chains are given in the order in which they finished. Among equal totals the key whose first chain finished earliest
  wins: the result does not depend on hash order, and an answer-so-far is not unseated by a tie.
* A chain without an answer (key None) never wins, but counts in the total: a share of 3 of 8 is 0.375 even when only
  three chains answered, so that a share can serve as confidence.
* A chain whose value is not known yet (None: a reward model has not come to it) is taken as an average one.
* When nobody answered, `Vote.key` is None with share 0.

    majority(["5", None, "7", "5"]).key                            # "5", share 0.5
    cast_votes(["5", "7"], [0.2, 0.9], voter=Weighted()).key       # "7"
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thinkfast.errors import InputError
from thinkfast.judge.voters import MAJORITY, Floats, Voter


@dataclass(frozen=True, slots=True)
class Vote:
    """The outcome of a vote.

    key: the winner, None when no chain has an answer. answer: its most common surface form (of equally common ones
    the earliest), or the key when no surface forms were given. share: the winner's part of all weight, in [0, 1].
    count: chains with the winner's key. total: all chains, those without an answer too. runner_up, runner_up_share:
    the key in second place and its part, None and 0 without one. best: index of the chain to show: the earliest with
    the winner's key, of those of the greatest weight.
    """

    key: str | None
    answer: str | None
    share: float
    count: int
    total: int
    runner_up: str | None
    runner_up_share: float
    best: int | None

    @property
    def margin(self) -> float:
        """Share of the winner less that of the runner-up."""
        return self.share - self.runner_up_share


def majority(keys: Sequence[str | None], *, answers: Sequence[str | None] | None = None) -> Vote:
    """The key with the most chains; arguments and errors as for `cast_votes`."""
    return cast_votes(keys, answers=answers)


def cast_votes(
    keys: Sequence[str | None],
    values: Sequence[float | None] | None = None,
    *,
    voter: Voter = MAJORITY,
    answers: Sequence[str | None] | None = None,
) -> Vote:
    """The key with the greatest sum of the weights that `voter` gives.

    Arguments:
        keys: one per chain, in the order of finishing; None for a chain without an answer.
        values: what the voter reads, one per chain, finite; None where it is not known.
        answers: surface forms, one per chain, for `Vote.answer`.

    Raises:
        InputError: lengths differ, or a value is NaN or infinite.
    """
    weight = weigh(keys, values, voter).tolist()
    _same_length(keys, answers, "answers")
    totals: dict[str, float] = {}
    first: dict[str, int] = {}
    for at, key in enumerate(keys):
        if key is not None:
            totals[key] = totals.get(key, 0.0) + weight[at]
            first.setdefault(key, at)
    ranked = sorted(totals, key=lambda key: (-totals[key], first[key]))
    whole = math.fsum(weight) or 1.0
    key = ranked[0] if ranked else None
    second = ranked[1] if len(ranked) > 1 else None
    return Vote(
        key=key,
        answer=_surface(keys, answers, key),
        share=min(totals[key] / whole, 1.0) if key is not None else 0.0,
        count=sum(k == key for k in keys) if key is not None else 0,
        total=len(keys),
        runner_up=second,
        runner_up_share=totals[second] / whole if second is not None else 0.0,
        best=max((at for at, k in enumerate(keys) if k == key), key=lambda at: (weight[at], -at))
        if key is not None
        else None,
    )


def weigh(keys: Sequence[str | None], values: Sequence[float | None] | None, voter: Voter) -> Floats:
    """The weight of every chain [N]; those of chains without an answer count in the whole alone."""
    if not voter.reads or values is None or all(value is None for value in values):
        voter, values = MAJORITY, [0.0] * len(keys)  # nothing is known of anybody: all are equal
    _same_length(keys, values, "values")
    for at, value in enumerate(values):
        if value is not None and not math.isfinite(value):
            raise InputError(
                f"values[{at}] is {value}, and {voter.name!r} cannot weigh it",
                remedy="repair the reward model, or leave that chain out",
            )
    if not keys:
        return np.zeros(0)
    known = [value for value in values if value is not None]
    mean = math.fsum(known) / len(known)
    given = np.array([mean if value is None else value for value in values], np.float64)
    given[[key is None for key in keys]] = -np.inf
    weights: Floats = voter.weights(given[None])[0]
    return weights


def _surface(keys: Sequence[str | None], answers: Sequence[str | None] | None, key: str | None) -> str | None:
    if key is None or answers is None:
        return key
    forms = Counter(answer for k, answer in zip(keys, answers, strict=True) if k == key and answer is not None)
    return max(forms, key=lambda form: forms[form]) if forms else key  # Counter keeps the order of first sight


def _same_length(keys: Sequence[str | None], values: Sequence[object] | None, name: str) -> None:
    if values is not None and len(values) != len(keys):
        raise InputError(f"{len(keys)} keys and {len(values)} {name}", remedy=f"pass one of {name} for every chain")
