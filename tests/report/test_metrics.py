"""pass@k and maj@k are unbiased over random subsets, and refuse k > n."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkfast.errors import InputError
from thinkfast.judge.vote import cast_votes
from thinkfast.judge.voters import MAJORITY, VOTERS, Best, Voter
from thinkfast.report.metrics import (
    Chains,
    coverage_at_k,
    maj_at_k,
    majority_at_k,
    pass_at_k,
    vote_at_k,
    voter_at_k,
)

samples = st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=7)


def brute_force(keys: list[str | None], k: int, voter: Voter = MAJORITY, values: list[float] | None = None) -> float:
    """By definition, through the vote itself: the mean over all subsets of "1 wins"."""
    wins = [
        cast_votes([keys[i] for i in subset], values and [values[i] for i in subset], voter=voter).key == "1"
        for subset in itertools.combinations(range(len(keys)), k)
    ]
    return sum(wins) / len(wins)


def arrays(keys: list[str | None], gold: str = "1") -> tuple[np.ndarray, np.ndarray]:
    return np.array([-1 if k is None else int(k) for k in keys]), np.array([k == gold for k in keys])


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_exact_enumeration(case: tuple[int, int, int]) -> None:
    n, c, k = case
    hits = [any(i < c for i in subset) for subset in itertools.combinations(range(n), k)]
    assert pass_at_k(n, c, k) == pytest.approx(sum(hits) / len(hits), abs=1e-12)


def test_pass_at_k_of_large_counts() -> None:
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01)
    assert pass_at_k(10_000, 5000, 5001) == 1.0


def test_pass_at_k_is_unbiased_where_the_naive_estimate_is_not() -> None:
    p, n, k = 0.2, 8, 4
    weight = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    truth = 1 - (1 - p) ** k
    assert sum(w * pass_at_k(n, c, k) for c, w in enumerate(weight)) == pytest.approx(truth)
    assert sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(weight)) != pytest.approx(truth, abs=0.01)


@given(samples, st.data())
def test_maj_at_k_is_the_voter_over_all_subsets(keys: list[str | None], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(keys)))
    assert maj_at_k(*arrays(keys), k) == pytest.approx(brute_force(keys, k))


@pytest.mark.parametrize("voter", [voter for voter in VOTERS.values() if voter.reads], ids=lambda voter: voter.name)
@given(samples, st.data())
def test_every_voters_at_k_is_its_vote_over_all_subsets(
    voter: Voter, keys: list[str | None], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(keys)))
    values = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=len(keys), max_size=len(keys)))
    found = vote_at_k(*arrays(keys), k, voter=voter, values=np.array(values))
    assert found == pytest.approx(brute_force(keys, k, voter, values))


def test_best_of_n_at_k_has_a_closed_form() -> None:
    """The sample of rank r of N is the best of a random k with probability C(N - r, k - 1) / C(N, k)."""
    rng = np.random.default_rng(6)
    n, k = 12, 5
    right, values = rng.random(n) < 0.4, rng.random(n)
    ranked = right[np.argsort(-values)]
    truth = sum(math.comb(n - 1 - r, k - 1) * bool(ranked[r]) for r in range(n - k + 1)) / math.comb(n, k)
    keys = np.where(right, 0, np.arange(1, n + 1))
    assert vote_at_k(keys, right, k, voter=Best(), values=values) == pytest.approx(truth)


def test_a_log_without_scores_is_refused_by_a_voter_that_reads_them() -> None:
    columns: tuple[Any, ...] = (["a"] * 3, ["1", "2", "2"], [True, False, False], [0.3, 0.1, 0.2])
    with pytest.raises(InputError, match="100% of the chains have no finite 'score'"):
        voter_at_k(Chains.build(*columns), 2, VOTERS["weighted"])
    with pytest.raises(InputError, match="33% of the chains"):
        voter_at_k(Chains.build(*columns, values={"score": [1.0, None, 0.5]}), 2, VOTERS["weighted"])
    with pytest.raises(InputError, match="reads 'score'"):
        vote_at_k(np.array([1]), np.array([True]), 1, voter=Best())
    scored = Chains.build(*columns, values={"score": [0.9, 0.1, 0.2]})
    assert scored.values["score"].tolist() == [0.1, 0.2, 0.9]  # in the order of finishing, as all else
    assert voter_at_k(scored, 3, VOTERS["weighted"]).tolist() == [1.0]
    assert voter_at_k(scored, 3, MAJORITY).tolist() == [0.0]


@pytest.mark.parametrize("k", [1, 5, 8, 15])
def test_maj_at_k_from_random_subsets_is_near_the_enumeration(k: int) -> None:
    keys: list[str | None] = [None if r > 3 else str(r) for r in np.random.default_rng(5).integers(1, 5, 16)]
    truth = maj_at_k(*arrays(keys), k, exact=10**6)
    drawn = maj_at_k(*arrays(keys), k, exact=0, draws=20_000, seed=3)
    assert abs(drawn - truth) < 4.5 * math.sqrt(max(truth * (1 - truth), 1e-4) / 20_000)
    assert drawn == maj_at_k(*arrays(keys), k, exact=0, draws=20_000, seed=3)


def test_maj_at_k_is_not_the_majority_of_the_first_k() -> None:
    keys: list[str | None] = ["1", "1", "2", "2", "2", "2"]
    assert maj_at_k(*arrays(keys), 2) < 1.0  # the first two alone would say 1.0
    assert maj_at_k(*arrays(keys), 6) == 0.0


def test_maj_at_k_without_answers() -> None:
    assert maj_at_k(*arrays([None, None, None]), 2) == 0.0
    assert maj_at_k(np.array([-1, -1]), np.array([True, True]), 2) == 0.0


@pytest.mark.parametrize("k", [0, -1, 4])
def test_k_out_of_range_is_refused_with_a_remedy(k: int) -> None:
    chains = Chains.build(["a"] * 9 + ["b"] * 3, ["1"] * 12, [True] * 12, [0.1] * 12)
    with pytest.raises(InputError, match="remedy"):
        pass_at_k(3, 1, k)
    with pytest.raises(InputError, match="remedy"):
        maj_at_k(np.array([1, 1, 1]), np.array([True] * 3), k)
    with pytest.raises(InputError, match="'b' has 3 samples"):
        coverage_at_k(chains, k)
    with pytest.raises(InputError, match="'b' has 3 samples"):
        majority_at_k(chains, k)


def test_counts_out_of_range_are_refused() -> None:
    with pytest.raises(InputError):
        pass_at_k(3, 4, 1)


def test_per_problem_values() -> None:
    chains = Chains.build(
        ["a", "b", "a", "b", "a", "b"],
        ["5", "7", "5", None, "6", "8"],
        [True, False, True, False, False, True],
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    )
    assert coverage_at_k(chains, 1) == pytest.approx([2 / 3, 1 / 3])
    assert coverage_at_k(chains, 3) == pytest.approx([1.0, 1.0])
    assert majority_at_k(chains, 3) == pytest.approx([1.0, 0.0])
    assert majority_at_k(chains, 1) == pytest.approx([2 / 3, 1 / 3])


def test_unknown_verdicts_bracket_the_figure() -> None:
    chains = Chains.build(["a"] * 4, ["5", "5", "6", None], [None, None, False, False], [0.1, 0.2, 0.3, 0.4])
    assert chains.unknown_share == 0.5
    assert coverage_at_k(chains, 1) == pytest.approx([0.0])
    assert coverage_at_k(chains, 1, unknown="right") == pytest.approx([0.5])
    assert majority_at_k(chains, 4) == pytest.approx([0.0])
    assert majority_at_k(chains, 4, unknown="right") == pytest.approx([1.0])


def test_a_key_counts_as_right_when_any_of_its_chains_does() -> None:
    chains = Chains.build(["a", "a", "b"], ["5", "5", "5"], [None, True, False], [0.2, 0.1, 0.1])
    assert chains.key_right().tolist() == [True, True, False]


def test_chains_are_in_order_of_finishing_per_problem() -> None:
    chains = Chains.build(["b", "a", "b"], ["1", "2", "3"], [True, False, None], [0.9, 0.5, 0.1], names=["a", "b", "c"])
    assert chains.problem.tolist() == [0, 1, 1]
    assert chains.seconds.tolist() == [0.5, 0.1, 0.9]
    assert chains.counts.tolist() == [1, 2, 0]
    assert [chains.correct[s].tolist() for s in chains.slices()] == [[0], [-1, 1], []]
    with pytest.raises(InputError, match="'c' has 0 samples"):
        coverage_at_k(chains, 1)


@pytest.mark.parametrize(
    "columns",
    [
        (["a"], ["1", "2"], [True], [0.1]),
        (["a"], ["1"], [True], [float("nan")]),
        (["a"], ["1"], [True], [-1.0]),
    ],
)
def test_bad_columns_are_refused(columns: tuple[list[str], list[str | None], list[bool | None], list[float]]) -> None:
    with pytest.raises(InputError):
        Chains.build(*columns)
    with pytest.raises(InputError, match="not in the problem set"):
        Chains.build(["a"], ["1"], [True], [0.0], names=["b"])
