"""Intervals and tests over problems: bootstrap, Wilson, paired difference.

Shapes: P problems, R resamples, G columns (points of a curve).

Why over problems: a report claims something about problems that were not asked, so problems are the unit that is
drawn again, with all their chains. Percentile intervals are too short for few problems; the tail probabilities are
widened as in Hesterberg (2015), "expanded percentile interval", which makes them exact for a normal mean.

    bootstrap(np.array([1.0, 0.0, 1.0, 1.0]))   # Estimate(value=0.75, low=…, high=…)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from thinkfast.errors import InputError

Floats = NDArray[np.float64]

_CHUNK = 1 << 22  # entries of the resampling matrix held at once


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `problems` problems with its confidence interval."""

    value: float
    low: float
    high: float
    problems: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of a - b over the same problems, its interval, and the two-sided p-value of "no difference"."""

    value: float
    low: float
    high: float
    p_value: float
    problems: int


def bootstrap(values: Floats, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean of `values` [P], each in [0, 1], with a bootstrap interval over problems; see `bootstrap_columns`."""
    mean, low, high = bootstrap_columns(np.asarray(values, np.float64)[:, None], level, resamples, seed)
    return Estimate(float(mean[0]), float(low[0]), float(high[0]), len(values))


def bootstrap_columns(
    values: Floats, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Means [G] of `values` [P, G], with lower and upper ends; every column is resampled by the same draws.

    A column of zeros only or ones only gets Wilson's interval, for the bootstrap would claim certainty; a single
    problem says nothing, its interval is [0, 1].

    Raises:
        InputError: no problems, values outside [0, 1] or NaN, or a level outside (0, 1).
    """
    values = np.asarray(values, np.float64)
    problems = values.shape[0]
    _check(problems, level, resamples)
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError("values outside [0, 1]", remedy="pass accuracies per problem, not counts or percentages")
    mean = values.mean(0)
    if problems == 1:
        return mean, np.zeros_like(mean), np.ones_like(mean)
    tail = _tail(level, problems)
    low, high = np.quantile(_resampled(values, resamples, seed), [tail, 1 - tail], axis=0)
    flat = values.min(0) == values.max(0)
    for g in np.flatnonzero(flat & ((mean == 0) | (mean == 1))):
        low[g], high[g] = wilson(round(mean[g] * problems), problems, level=level)
    return mean, np.clip(low, 0, 1), np.clip(high, 0, 1)


def wilson(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion: `successes` of `n` independent trials.

    Raises:
        InputError: n < 1, or successes outside 0..n.
    """
    _check(n, level, 1)
    if not 0 <= successes <= n:
        raise InputError(f"{successes} successes of {n} trials", remedy="pass 0 <= successes <= n")
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = max(centre - half, 0.0), min(centre + half, 1.0)
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)  # exactly, not but for rounding


def paired(a: Floats, b: Floats, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Whether system a differs from b on the same problems: `a` and `b` [P], aligned.

    The p-value is the share of resamples, centred at zero, at least as far from zero as the observed difference.

    Raises:
        InputError: other lengths, fewer than two problems, or values that are not finite.
    """
    problems = len(a)
    _check(problems, level, resamples)
    if len(a) != len(b) or problems < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError(
            f"a paired comparison of {len(a)} and {len(b)} values",
            remedy="give both systems the same problems, at least two, each with a finite value",
        )
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    mean = float(difference.mean())
    means = _resampled(difference[:, None], resamples, seed)[:, 0]
    tail = _tail(level, problems)
    low, high = np.quantile(means, [tail, 1 - tail])
    # resampled means spread by sqrt((P-1)/P) too little, as every bootstrap of a mean
    spread = (means - mean) * math.sqrt(problems / (problems - 1))
    beyond = int(np.count_nonzero(np.abs(spread) >= abs(mean) - 1e-12))
    return Difference(mean, float(low), float(high), (beyond + 1) / (resamples + 1), problems)


def sign_test(a: Floats, b: Floats) -> float:
    """Two-sided p-value of the exact sign test: of the problems on which a and b differ, does either win too often?

    On right-or-wrong values this is McNemar's exact test. It asks less of the values than `paired` (their size plays
    no part) and finds less.

    Raises:
        InputError: other lengths, no problems, or values that are not finite.
    """
    _check(len(a), 0.5, 1)
    if len(a) != len(b) or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError(
            f"a sign test of {len(a)} and {len(b)} values",
            remedy="give both systems the same problems, each with a finite value",
        )
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    n = wins + losses
    tail = sum(math.comb(n, i) for i in range(min(wins, losses) + 1))
    return min(1.0, float(2 * tail / 2**n))


def _resampled(values: Floats, resamples: int, seed: int) -> Floats:
    """Means [R, G] over problems drawn with replacement."""
    rng = np.random.default_rng(seed)
    problems = values.shape[0]
    even = np.full(problems, 1 / problems)
    out = np.empty((resamples, values.shape[1]))
    step = max(1, _CHUNK // problems)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        out[start : start + count] = rng.multinomial(problems, even, size=count) @ values / problems
    return out


def _tail(level: float, problems: int) -> float:
    """Tail probability of the expanded percentile interval: Φ(-t_{P-1} sqrt(P/(P-1)))."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    v = problems - 1
    # Cornish-Fisher expansion of Student's quantile; within 1 % from 4 degrees of freedom
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v * v)
    return NormalDist().cdf(-t * math.sqrt(problems / v))


def _check(problems: int, level: float, resamples: int) -> None:
    if problems < 1:
        raise InputError("no problems to average over", remedy="evaluate at least one problem")
    if not 0 < level < 1:
        raise InputError(f"confidence level {level}", remedy="pass a level between 0 and 1, such as 0.95")
    if resamples < 1:
        raise InputError(f"{resamples} resamples", remedy="pass at least 1, better 2000")
