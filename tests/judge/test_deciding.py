from __future__ import annotations

import random

import pytest

from thinkfast.engine.request import Chain
from thinkfast.errors import InputError
from thinkfast.judge.deciding import Posterior, Window, _stays, find_rule, never, stays
from thinkfast.judge.tally import Ballot, Tally, unbeatable
from thinkfast.judge.voters import VOTERS, Weighted


def tally_of(keys: list[str | None], scores: list[float] | None = None) -> Tally:
    tally = Tally(Weighted()) if scores else Tally()
    for index, key in enumerate(keys):
        chain = Chain("0", index, (5,), "", -1.0, None, "stop", 0.5, 3)
        tally.add(Ballot(chain, key, key, 0.0, scores[index] if scores else None))
    return tally


@pytest.mark.parametrize(("mine", "rival", "remaining"), [(3, 1, 8), (2, 2, 5), (5, 4, 20), (1, 0, 3), (4, 0, 60)])
def test_the_posterior_is_that_of_the_urn(mine: int, rival: int, remaining: int) -> None:
    """A Beta(1, 1) prior means Polya's urn: each vote to come goes to one of the two as the votes so far, plus one."""
    rng = random.Random(mine * 100 + remaining)
    draws, stayed = 20_000, 0
    for _ in range(draws):
        a, b = mine + 1, rival + 1
        for _ in range(remaining):
            if rng.random() * (a + b) < a:
                a += 1
            else:
                b += 1
        stayed += a >= b
    truth = _stays(float(mine), float(rival), remaining)
    assert abs(stayed / draws - truth) < 4.5 * (truth * (1 - truth) / draws) ** 0.5 + 1e-9


def test_certainty_grows_with_the_lead_and_shrinks_with_what_is_to_come() -> None:
    assert stays(tally_of([]), 5) == 0.0
    assert stays(tally_of([None, None]), 5) == 0.0
    assert stays(tally_of(["a"] * 5), 0) == 1.0
    assert stays(tally_of(["a"] * 5), 40) > stays(tally_of(["a"] * 3), 40) > stays(tally_of(["a", "a", "b"]), 40)
    assert stays(tally_of(["a"] * 5), 4) == 1.0
    assert unbeatable(tally_of(["a"] * 5), 4)


def test_weights_count_as_votes_of_the_same_total() -> None:
    keys: list[str | None] = ["a", "a", "b", "b"]
    even = stays(tally_of(keys, [0.3] * 4), 10)
    assert even == stays(tally_of(keys), 10)
    assert stays(tally_of(keys, [0.9, 0.9, 0.1, 0.1]), 10) > even


def test_a_weighted_vote_is_unbeatable_by_weight_and_a_ranked_one_never() -> None:
    assert unbeatable(tally_of(["a", "b"], [0.9, 0.1]), 0)
    assert not unbeatable(tally_of(["a", "b", "b"], [0.9, 0.2, 0.2]), 1)
    assert unbeatable(tally_of(["a", "a", "b"], [1.0, 1.0, 0.2]), 1)
    waiting = Tally(Weighted())
    waiting.add(Ballot(Chain("0", 0, (5,), "", -1.0, None, "stop", 0.5, 3), "a", "a", 0.0))
    assert not unbeatable(waiting, 0)  # its score may still come
    ranked = Tally(VOTERS["certainty"])
    ranked.add(Ballot(Chain("0", 0, (5,), "", -1.0, None, "stop", 0.5, 3, 1.0), "a", "a", 0.0))
    assert not unbeatable(ranked, 0)


def test_rules() -> None:
    assert not Posterior(0.6)(tally_of(["a"]), 2)  # too few
    assert Posterior(0.9)(tally_of(["a"] * 6), 30)
    assert not Posterior(0.9)(tally_of(["a", "b"] * 3), 30)
    window = Window(3)
    assert window(tally_of(["b", "a", "a", "a"]), 9)
    assert not window(tally_of(["a", "a"]), 9)
    assert not window(tally_of(["a", "a", "a", "b", "a"]), 9)
    assert not window(tally_of([None, None, None]), 9)
    assert not window(tally_of(["a", "a", "a", "a", "b", "b", "b"]), 9)  # they agree, but not with the leader
    assert not never(tally_of(["a"] * 60), 1)


def test_rules_by_name() -> None:
    assert find_rule("posterior:0.9") == Posterior(0.9)
    assert find_rule("posterior") == Posterior()
    assert find_rule("window:6") == Window(6)
    assert find_rule("unbeatable") is unbeatable
    assert find_rule("never") is never
    for bad in ("sometimes", "posterior:x", "posterior:2", "posterior:0.2", "window:0", "window:1.5", "never:1"):
        with pytest.raises(InputError, match="remedy"):
            find_rule(bad)
