"""Who wins a vote, how ties break, and what a share means."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkfast.errors import InputError
from thinkfast.judge.vote import Vote, best_of_n, majority, self_certainty

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
    assert best_of_n([None, None], [1.0, 2.0]) == nobody
    assert majority([]).total == 0


def test_weights() -> None:
    vote = majority(["a", "b", "b"], [5.0, 2.0, 2.0])
    assert (vote.key, vote.count, vote.total) == ("a", 1, 3)
    assert vote.share == pytest.approx(5 / 9)
    assert majority(["a", "b", "b"], [0.0, 0.0, 0.0]).key == "b"  # no information: count


def test_best_of_n() -> None:
    vote = best_of_n(["a", "b", "b", None], [-3.0, -5.0, -1.0, 9.0], answers=["A", "B1", "B2", None])
    assert (vote.key, vote.answer, vote.best, vote.count, vote.share) == ("b", "B2", 2, 2, 0.5)
    assert (vote.runner_up, vote.runner_up_share) == ("a", 0.25)
    assert best_of_n(["a", "b"], [1.0, 1.0]).key == "a"


def test_self_certainty_weighs_by_mean_log_probability() -> None:
    keys = ["a", "b", "b"]
    assert self_certainty(keys, [-1.0, -90.0, -80.0], [100, 100, 100]).key == "a"
    assert self_certainty(keys, [-1.0, -90.0, -80.0], [100, 100, 100], temperature=100.0).key == "b"
    assert self_certainty(["a"], [0.0], [0]).share == 1.0
    far = self_certainty(["a", "b"], [-1e9, -2e9], [1, 1])  # the largest weight is 1, so nothing underflows to 0/0
    assert far.key == "a"


@pytest.mark.parametrize("weights", [[1.0], [1.0, math.nan], [1.0, math.inf], [1.0, -1.0]])
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(InputError):
        majority(["a", "b"], weights)


def test_bad_scores_are_refused() -> None:
    with pytest.raises(InputError, match=r"scores\[1\] is nan"):
        best_of_n(["a", "b"], [1.0, math.nan])
    with pytest.raises(InputError):
        self_certainty(["a"], [1.0], [1], temperature=0.0)
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
def test_equal_weights_are_no_weights(keys: list[str | None], weight: int) -> None:
    weighted, plain = majority(keys, [float(weight)] * len(keys)), majority(keys)
    assert (weighted.key, weighted.runner_up) == (plain.key, plain.runner_up)
    assert weighted.share == pytest.approx(plain.share)
