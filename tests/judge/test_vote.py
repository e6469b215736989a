"""Who wins a vote, how ties break, and what a share means."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkfast.errors import InputError
from thinkfast.judge.vote import Vote, cast_votes, majority
from thinkfast.judge.voters import VOTERS, Best, Certainty, Likelihood, Voter, Weighted, find_voter

keys_lists = st.lists(st.sampled_from(["1", "2", "3", None]), max_size=12)


def test_majority() -> None:
    vote = majority(["5", None, "7", "5"], answers=["5.0", None, "7", "5"])
    assert vote == Vote(key="5", answer="5.0", share=0.5, count=2, total=4, runner_up="7", runner_up_share=0.25, best=0)
    assert vote.margin == 0.25


def test_the_answer_shown_is_the_most_common_form() -> None:
    assert majority(["1/2"] * 4, answers=["0.5", r"\frac12", r"\frac12", "1/2"]).answer == r"\frac12"
    assert majority(["1/2", "1/2"]).answer == "1/2"


def test_ties_go_to_the_key_that_finished_first() -> None:
    assert majority(["b", "a", "a", "b"]).key == "b"
    assert majority(["a", "b", "b", "a"]).key == "a"
    assert majority(["c", "a", "a", "b", "b"]).key == "a"


def test_chains_without_an_answer_never_win_but_count() -> None:
    assert majority([None, None, "5"]).key == "5"
    assert majority([None, None, "5"]).share == pytest.approx(1 / 3)
    nobody = Vote(None, None, 0.0, 0, 2, None, 0.0, None)
    assert majority([None, None], answers=[None, None]) == nobody
    assert cast_votes([None, None], [1.0, 2.0], voter=Best()) == nobody
    assert majority([]).total == 0


def test_weights() -> None:
    vote = cast_votes(["a", "b", "b"], [0.9, 0.3, 0.3], voter=Weighted())
    assert (vote.key, vote.count, vote.total) == ("a", 1, 3)
    assert vote.share == pytest.approx(0.9 / 1.5)
    assert cast_votes(["a", "b", "b"], [0.0, 0.0, 0.0], voter=Weighted()).key == "b"  # no information: count


def test_best_of_n() -> None:
    scores = [-3.0, -5.0, -1.0, 9.0]
    vote = cast_votes(["a", "b", "b", None], scores, voter=Best(), answers=["A", "B", "B", None])
    assert (vote.key, vote.answer, vote.best, vote.count, vote.share) == ("b", "B", 2, 2, 1.0)
    assert cast_votes(["a", "b"], [1.0, 1.0], voter=Best()).key == "a"


def test_certainty_is_a_borda_vote() -> None:
    keys, values = ["a", "b", "b", None], [3.0, 1.0, 2.0, 9.0]
    vote = cast_votes(keys, values, voter=Certainty(power=1.0))
    # A chain without an answer ranks last: weights 4, 2, 3 and 1.
    assert (vote.key, vote.share) == ("b", pytest.approx(5 / 10))
    assert cast_votes(keys, values, voter=Certainty(power=8.0)).key == "a"
    assert cast_votes(keys, values, voter=Certainty(power=0.0)).share == 0.5
    assert cast_votes(["a", "b"], [1.0, 1.0], voter=Certainty()).key == "a"


def test_likelihood_weighs_by_mean_log_probability() -> None:
    keys = ["a", "b", "b"]
    assert cast_votes(keys, [-0.01, -0.9, -0.8], voter=Likelihood()).key == "a"
    assert cast_votes(keys, [-0.01, -0.9, -0.8], voter=Likelihood(temperature=100.0)).key == "b"
    assert cast_votes(["a", "b"], [-1e9, -2e9], voter=Likelihood()).key == "a"  # nothing underflows to 0/0
    assert cast_votes([None, "a"], [0.0, -5.0], voter=Likelihood()).key == "a"
    with pytest.raises(InputError, match="positive temperature"):
        Likelihood(temperature=0.0)


def test_a_value_that_is_not_known_yet_is_an_average_one() -> None:
    keys = ["a", "b", "b"]
    assert cast_votes(keys, [0.9, None, 0.1], voter=Weighted()).share == pytest.approx(0.9 / 1.5)
    for voter in VOTERS.values():
        assert cast_votes(keys, [None] * 3, voter=voter) == majority(keys)
        assert cast_votes(keys, voter=voter) == majority(keys)


@pytest.mark.parametrize("voter", VOTERS.values(), ids=lambda voter: voter.name)
def test_every_voter_keeps_the_protocol(voter: Voter) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((50, 7))
    values[rng.random((50, 7)) < 0.3] = -np.inf
    weights = voter.weights(values)
    assert weights.shape == values.shape
    assert (np.isfinite(weights) & (weights >= 0)).all()
    assert (weights == np.concatenate([voter.weights(row[None]) for row in values])).all()  # votes are independent
    some = np.isfinite(values).any(-1)
    assert (np.where(np.isfinite(values), weights, 0.0).sum(-1)[some] > 0).all()
    assert find_voter(voter.name) is voter
    assert find_voter(voter) is voter
    assert cast_votes([None, None], [0.1, 0.2], voter=voter).key is None
    assert cast_votes([], [], voter=voter).key is None


def test_unknown_voters_are_told_of() -> None:
    with pytest.raises(InputError, match="did you mean 'majority'"):
        find_voter("majorty")
    with pytest.raises(InputError, match="use one of majority, weighted"):
        find_voter("x")


@pytest.mark.parametrize("values", [[1.0], [1.0, math.nan], [1.0, math.inf], [1.0, -1.0]])
def test_bad_scores_are_refused(values: list[float]) -> None:
    with pytest.raises(InputError):
        cast_votes(["a", "b"], values, voter=Weighted())


def test_other_lengths_are_refused() -> None:
    with pytest.raises(InputError, match=r"values\[1\] is nan, and 'best' cannot"):
        cast_votes(["a", "b"], [1.0, math.nan], voter=Best())
    with pytest.raises(InputError):
        majority(["a"], answers=["a", "b"])


@given(keys_lists)
def test_majority_is_the_most_common_key(keys: list[str | None]) -> None:
    vote = majority(keys)
    counts = Counter(key for key in keys if key is not None)
    assert vote.count == max(counts.values(), default=0)
    if vote.key is not None:
        tied = [key for key in counts if counts[key] == vote.count]
        assert vote.key == min(tied, key=keys.index)
        assert vote.share == pytest.approx(vote.count / len(keys))
        assert vote.runner_up_share <= vote.share
        assert keys[vote.best or 0] == vote.key


@given(keys_lists, st.randoms())
def test_without_a_tie_order_does_not_matter(keys: list[str | None], rng: random.Random) -> None:
    ranked = Counter(key for key in keys if key is not None).most_common(2)
    if len(ranked) == 2 and ranked[0][1] == ranked[1][1]:
        return
    shuffled = list(keys)
    rng.shuffle(shuffled)
    assert majority(shuffled).key == majority(keys).key


@given(keys_lists, st.integers(1, 5))
def test_equal_scores_are_no_scores(keys: list[str | None], score: int) -> None:
    plain = majority(keys)
    weighted = cast_votes(keys, [float(score)] * len(keys), voter=Weighted())
    assert (weighted.key, weighted.runner_up) == (plain.key, plain.runner_up)
    if None not in keys:
        assert weighted.share == pytest.approx(plain.share)
