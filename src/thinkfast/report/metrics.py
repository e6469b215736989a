"""pass@k, maj@k and any voter's @k, unbiased over random subsets of the samples.

Shapes: P problems, N samples of one problem in their order of finishing, k the size of a subset, S subsets, U keys.

Why: with N samples at hand, "the first k" is one draw and 1-(1-p)^k is biased. pass@k is the estimator of Chen et al.
(2021), 1 - C(N-c, k)/C(N, k), exact. maj@k, weighted@k and the like are the mean over all k-subsets of "the vote is
right", by enumeration where there are at most `exact` subsets, else over random subsets under a fixed seed. Ties go to
the key that finished first, chains without an answer never win, as in `judge.vote`. k > N is an error, never a silent
pass@N.

    pass_at_k(n=10, c=3, k=1)   # 0.3
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinkfast.errors import InputError
from thinkfast.judge.voters import MAJORITY, Voter
from thinkfast.report.chains import Chains, Unknown
from thinkfast.report.curves import Curve, coverage_curve, vote_curve
from thinkfast.report.intervals import Difference, Estimate, bootstrap, paired, sign_test, wilson

__all__ = [
    "Chains",
    "Curve",
    "Difference",
    "Estimate",
    "bootstrap",
    "coverage_at_k",
    "coverage_curve",
    "maj_at_k",
    "majority_at_k",
    "paired",
    "pass_at_k",
    "sign_test",
    "vote_at_k",
    "vote_curve",
    "voter_at_k",
    "wilson",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_DRAW_ENTRIES = 1 << 22


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that a random k of n samples, c of them right, hold a right one.

    Raises:
        InputError: k < 1, k > n, or c outside 0..n.
    """
    _check_k(n, k)
    if not 0 <= c <= n:
        raise InputError(f"{c} right of {n} samples", remedy="pass 0 <= c <= n")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def coverage_at_k(chains: Chains, k: int, *, unknown: Unknown = "wrong") -> Floats:
    """[P] pass@k of every problem; feed it to `bootstrap` or `paired`.

    Raises:
        InputError: some problem has fewer than k samples.
    """
    _check_all(chains, k)
    right = np.bincount(chains.problem, weights=chains.right(unknown), minlength=chains.problems)
    return np.array([pass_at_k(int(n), int(c), k) for n, c in zip(chains.counts, right, strict=True)])


def maj_at_k(keys: Ints, right: NDArray[np.bool_], k: int, **options: Any) -> float:
    """Probability that the majority of a random k of N samples of one problem is right; as `vote_at_k`."""
    return vote_at_k(keys, right, k, **options)


def vote_at_k(
    keys: Ints,
    right: NDArray[np.bool_],
    k: int,
    *,
    voter: Voter = MAJORITY,
    values: Floats | None = None,
    exact: int = 5000,
    draws: int = 4000,
    seed: int = 0,
) -> float:
    """Probability that the vote of a random k of N samples of one problem is right.

    Arguments:
        keys: [N] in the order of finishing, -1 for no answer.
        right: [N] whether the sample's key is right.
        values: [N] what the voter reads, finite; may be left out for one that reads nothing.
        exact: enumerate all subsets when there are at most so many, else draw `draws` of them under `seed`.

    Raises:
        InputError: k < 1 or k > N, or the voter has nothing to read.
    """
    n = len(keys)
    _check_k(n, k)
    if values is None and voter.reads:
        raise InputError(f"the voter {voter.name!r} reads {voter.reads!r}", remedy="pass values, one a sample")
    read = np.zeros(n) if values is None else np.asarray(values, np.float64)
    present, key = np.unique(np.asarray(keys, np.int64), return_inverse=True)
    right_of = np.zeros(len(present), bool)
    right_of[key[np.asarray(right, bool)]] = True
    right_of &= present >= 0
    chosen = _subsets(n, k, exact, draws, seed)
    wins = 0
    step = max(1, _DRAW_ENTRIES // max(k, len(present)))
    for start in range(0, len(chosen), step):
        part = chosen[start : start + step]
        weights = voter.weights(np.where((present >= 0)[key][part], read[part], -np.inf))
        winner = _winners(key, present >= 0, weights, part)
        wins += int(np.count_nonzero(right_of[winner] & (winner >= 0)))
    return wins / len(chosen)


def majority_at_k(chains: Chains, k: int, *, unknown: Unknown = "wrong", **options: Any) -> Floats:
    """[P] maj@k of every problem; `options` as for `maj_at_k`.

    Raises:
        InputError: some problem has fewer than k samples.
    """
    return voter_at_k(chains, k, MAJORITY, unknown=unknown, **options)


def voter_at_k(chains: Chains, k: int, voter: Voter, *, unknown: Unknown = "wrong", **options: Any) -> Floats:
    """[P] the voter's accuracy over random subsets of k; `options` as for `vote_at_k`.

    Raises:
        InputError: some problem has fewer than k samples, or the log lacks what the voter reads.
    """
    _check_all(chains, k)
    right, values = chains.key_right(unknown), chains.read(voter)
    return np.array(
        [
            vote_at_k(chains.key[part], right[part], k, voter=voter, values=values[part], **options)
            for part in chains.slices()
        ]
    )


def _winners(key: Ints, answered: NDArray[np.bool_], weights: Floats, chosen: Ints) -> Ints:
    """[S] the winning key of each subset `chosen` [S, k] (sorted rows) weighed by `weights` [S, k], -1 when nobody
    answered.
    """
    subsets, k = chosen.shape
    u = len(answered)
    drawn = key[chosen]
    flat = (drawn + np.arange(subsets)[:, None] * u).ravel()
    totals = np.bincount(flat, weights.ravel(), minlength=subsets * u).reshape(subsets, u).astype(np.float64)
    first = np.full((subsets, u), k)
    for j in range(k - 1, -1, -1):
        first[np.arange(subsets), drawn[:, j]] = j
    totals[:, ~answered] = -1.0
    totals[first == k] = -1.0
    best = totals.max(1, keepdims=True)
    winner = np.where(totals == best, first, k + 1).argmin(1)
    return np.where(best[:, 0] < 0, -1, winner)


def _subsets(n: int, k: int, exact: int, draws: int, seed: int) -> Ints:
    """[S, k] sorted indices: all subsets, or random ones."""
    if math.comb(n, k) <= exact:
        return np.array(list(itertools.combinations(range(n), k)), np.int64)
    rng = np.random.default_rng(seed)
    step = max(1, _DRAW_ENTRIES // n)
    parts = [
        np.argpartition(rng.random((min(step, draws - start), n)), k - 1, axis=1)[:, :k]
        for start in range(0, draws, step)
    ]
    return np.sort(np.concatenate(parts), axis=1).astype(np.int64)


def _check_k(n: int, k: int) -> None:
    if k < 1 or k > n:
        raise InputError(f"k = {k} with {n} samples", remedy=f"choose k in 1..{n}, or draw at least {k} samples")


def _check_all(chains: Chains, k: int) -> None:
    counts = chains.counts
    if not len(counts):
        raise InputError("no problems to average over", remedy="evaluate at least one problem")
    fewest = int(counts.argmin())
    if k < 1 or k > counts[fewest]:
        raise InputError(
            f"k = {k}, but problem {chains.names[fewest]!r} has {counts[fewest]} samples",
            remedy=f"choose k in 1..{counts[fewest]}, or draw at least {k} samples for every problem",
        )
