"""Coverage and majority accuracy as functions of measured seconds.

Shapes: P problems, T chains, G points of the grid.

Why: the question is what a budget buys. At second t a system has the chains that had finished by then, prefill and all
included; coverage(t) is the share of problems with a right chain among them, majority(t) the share whose majority
among them is right. A problem without a finished chain counts as not solved. Intervals are over problems.

    coverage_curve(chains, seconds=np.geomspace(0.1, 60, 50)).value
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thinkfast.errors import InputError
from thinkfast.judge.voters import Voter
from thinkfast.report.chains import Chains, Unknown
from thinkfast.report.intervals import bootstrap_columns

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy against seconds: seconds, value, low, high all [G]; `unknown_share` of the chains it was drawn from."""

    seconds: Floats
    value: Floats
    low: Floats
    high: Floats
    problems: int
    unknown_share: float


def coverage_by_second(chains: Chains, seconds: Floats, *, unknown: Unknown = "wrong") -> Floats:
    """[P, G] 1.0 where a right chain had finished by that second."""
    grid = _grid(seconds)
    earliest = np.full(chains.problems, np.inf)
    right = chains.right(unknown)
    np.minimum.at(earliest, chains.problem[right], chains.seconds[right])
    return (earliest[:, None] <= grid).astype(np.float64)


def majority_by_second(chains: Chains, seconds: Floats, *, unknown: Unknown = "wrong") -> Floats:
    """[P, G] 1.0 where the majority of the chains finished by that second is right; ties as in `judge.vote`."""
    grid = _grid(seconds)
    right = chains.key_right(unknown)
    out = np.zeros((chains.problems, len(grid)))
    for p, part in enumerate(chains.slices()):
        history = _leader_right(chains.key[part], right[part])
        out[p] = history[np.searchsorted(chains.seconds[part], grid, side="right")]
    return out


def vote_by_second(chains: Chains, seconds: Floats, voter: Voter, *, unknown: Unknown = "wrong") -> Floats:
    """[P, G] 1.0 where the voter's answer among the chains finished by that second is right.

    Raises:
        InputError: a bad grid, or the log lacks what the voter reads.
    """
    if not voter.reads:
        return majority_by_second(chains, seconds, unknown=unknown)
    grid = _grid(seconds)
    right, values = chains.key_right(unknown), chains.read(voter)
    out = np.zeros((chains.problems, len(grid)))
    for p, part in enumerate(chains.slices()):
        counts = np.searchsorted(chains.seconds[part], grid, side="right")
        keys, given, good = chains.key[part], values[part], right[part]
        for count in np.unique(counts[counts > 0]).tolist():
            out[p, counts == count] = _vote_right(keys[:count], given[:count], good[:count], voter)
    return out


def _vote_right(keys: NDArray[np.int64], values: Floats, right: NDArray[np.bool_], voter: Voter) -> bool:
    if (keys < 0).all():
        return False
    weights = voter.weights(np.where(keys >= 0, values, -np.inf)[None])[0]
    present, first, number = np.unique(keys, return_index=True, return_inverse=True)
    totals = np.bincount(number, weights)
    totals[present < 0] = -1.0
    leaders = np.flatnonzero(totals == totals.max())
    return bool(right[first[leaders].min()])


def vote_curve(
    chains: Chains,
    seconds: Floats,
    voter: Voter,
    *,
    unknown: Unknown = "wrong",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Curve:
    """A voter's accuracy at each of `seconds` [G]; intervals as below, errors as for `vote_by_second`."""
    values = vote_by_second(chains, seconds, voter, unknown=unknown)
    return _curve(chains, seconds, values, level, resamples, seed)


def coverage_curve(
    chains: Chains,
    seconds: Floats,
    *,
    unknown: Unknown = "wrong",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Curve:
    """Coverage at each of `seconds` [G] with bootstrap intervals over problems.

    Raises:
        InputError: no problems, or an empty, NaN or negative grid.
    """
    values = coverage_by_second(chains, seconds, unknown=unknown)
    return _curve(chains, seconds, values, level, resamples, seed)


def _curve(chains: Chains, seconds: Floats, values: Floats, level: float, resamples: int, seed: int) -> Curve:
    value, low, high = bootstrap_columns(values, level, resamples, seed)
    return Curve(_grid(seconds), value, low, high, chains.problems, chains.unknown_share)


def _leader_right(keys: NDArray[np.int64], right: NDArray[np.bool_]) -> Floats:
    """[N+1] whether the leader after the first n chains is right, n = 0..N."""
    out = np.zeros(len(keys) + 1)
    counts: dict[int, int] = {}
    first: dict[int, int] = {}
    leader = -1
    leader_right = False
    for at, (key, good) in enumerate(zip(keys.tolist(), right.tolist(), strict=True)):
        if key >= 0:
            counts[key] = counts.get(key, 0) + 1
            first.setdefault(key, at)
            if leader < 0 or (counts[key], -first[key]) >= (counts[leader], -first[leader]):
                leader, leader_right = key, good
        out[at + 1] = leader_right
    return out


def _grid(seconds: Floats) -> Floats:
    grid = np.asarray(seconds, np.float64)
    if grid.ndim != 1 or not grid.size or not (np.isfinite(grid) & (grid >= 0)).all():
        raise InputError("a grid of seconds that is empty, NaN or negative", remedy="pass seconds such as [0.5, 1, 2]")
    return grid
