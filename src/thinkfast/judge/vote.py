"""Many answers to one: majority on keys, weighted votes, best of N, self-certainty.

Policy, the same for every voter and for `report.metrics`:

* Chains are given in the order in which they finished. Among equal totals the key whose first chain finished earliest
  wins: the result does not depend on hash order, and an answer-so-far is not unseated by a tie.
* A chain without an answer (key None) never wins, but counts in the total: a share of 3 of 8 is 0.375 even when only
  three chains answered, so that a share can serve as confidence.
* When nobody answered, `Vote.key` is None with share 0.

    majority(["5", None, "7", "5"]).key   # "5", share 0.5
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from thinkfast.errors import InputError


@dataclass(frozen=True, slots=True)
class Vote:
    """The outcome of a vote.

    key: the winner, None when no chain has an answer. answer: its most common surface form (of equally common ones
    the earliest), or the key when no surface forms were given. share: the winner's part of all weight, in [0, 1].
    count: chains with the winner's key. total: all chains, those without an answer too. runner_up, runner_up_share:
    the key in second place and its part, None and 0 without one. best: index of the chain to show: the earliest with
    the winner's key, for best-of-N the one with the best score.
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


def majority(
    keys: Sequence[str | None],
    weights: Sequence[float] | None = None,
    *,
    answers: Sequence[str | None] | None = None,
) -> Vote:
    """The key with the most chains, or with the greatest sum of `weights` (weighted best-of-N).

    Arguments:
        keys: one per chain, in the order of finishing; None for a chain without an answer.
        weights: one per chain, finite and not negative; 1 each when not given. If all are 0, chains are counted.
        answers: surface forms, one per chain, for `Vote.answer`.

    Raises:
        InputError: lengths differ, or a weight is NaN, infinite or negative.
    """
    weight = _weights(keys, weights)
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
        best=first[key] if key is not None else None,
    )


def best_of_n(
    keys: Sequence[str | None], scores: Sequence[float], *, answers: Sequence[str | None] | None = None
) -> Vote:
    """The answer of the chain with the highest score; shares are shares of chains, as for `majority`.

    `scores` may be any finite numbers, such as log-probabilities. Equal scores: the chain that finished first.

    Raises:
        InputError: lengths differ, or a score is NaN or infinite.
    """
    _finite(keys, scores, "scores")
    _same_length(keys, answers, "answers")
    answered = [at for at, key in enumerate(keys) if key is not None]
    if not answered:
        return majority(keys)
    best = max(answered, key=lambda at: (scores[at], -at))
    counts = Counter(key for key in keys if key is not None)
    others = sorted((at for at in answered if keys[at] != keys[best]), key=lambda at: (-scores[at], at))
    second = keys[others[0]] if others else None
    key = keys[best]
    return Vote(
        key=key,
        answer=_surface(keys, answers, key) if answers is None else answers[best],
        share=counts[key or ""] / len(keys),
        count=counts[key or ""],
        total=len(keys),
        runner_up=second,
        runner_up_share=counts[second] / len(keys) if second is not None else 0.0,
        best=best,
    )


def self_certainty(
    keys: Sequence[str | None],
    logprobs: Sequence[float],
    lengths: Sequence[int],
    *,
    temperature: float = 0.1,
    answers: Sequence[str | None] | None = None,
) -> Vote:
    """A vote without a verifier: each chain weighs exp(mean token log-probability / temperature), the largest 1.

    Arguments:
        logprobs: sum of the log-probabilities of a chain's tokens. lengths: its number of tokens.
        temperature: the smaller, the nearer to trusting the most certain chain alone; large gives plain majority.

    Raises:
        InputError: lengths differ, a log-probability is not finite, or the temperature is not positive.
    """
    _finite(keys, logprobs, "logprobs")
    _same_length(keys, lengths, "lengths")
    if not temperature > 0 or any(n < 0 for n in lengths):
        raise InputError(f"temperature {temperature}", remedy="give a positive temperature and token counts")
    means = [logprob / max(n, 1) for logprob, n in zip(logprobs, lengths, strict=True)]
    top = max(means, default=0.0)
    return majority(keys, [math.exp((mean - top) / temperature) for mean in means], answers=answers)


def _surface(keys: Sequence[str | None], answers: Sequence[str | None] | None, key: str | None) -> str | None:
    if key is None or answers is None:
        return key
    forms = Counter(answer for k, answer in zip(keys, answers, strict=True) if k == key and answer is not None)
    return max(forms, key=lambda form: forms[form]) if forms else key  # Counter keeps the order of first sight


def _weights(keys: Sequence[str | None], weights: Sequence[float] | None) -> list[float]:
    if weights is None:
        return [1.0] * len(keys)
    _finite(keys, weights, "weights")
    if any(w < 0 for w in weights):
        raise InputError("a negative weight", remedy="pass weights of at least 0, such as exp(score)")
    return [float(w) for w in weights] if any(weights) else [1.0] * len(keys)


def _finite(keys: Sequence[str | None], values: Sequence[float], name: str) -> None:
    _same_length(keys, values, name)
    for at, value in enumerate(values):
        if not math.isfinite(value):
            raise InputError(
                f"{name}[{at}] is {value}", remedy=f"drop that chain, or give it a finite number in {name}"
            )


def _same_length(keys: Sequence[str | None], values: Sequence[object] | None, name: str) -> None:
    if values is not None and len(values) != len(keys):
        raise InputError(f"{len(keys)} keys and {len(values)} {name}", remedy=f"pass one of {name} for every chain")
