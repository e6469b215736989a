"""What another chain is worth is counted on chains of known outcome."""

from __future__ import annotations

import random

import pytest

from thinkfast.engine.request import Chain
from thinkfast.judge.gains import Gains, fit_gains
from thinkfast.judge.tally import Ballot, Tally


def votes(answers: str) -> Tally:
    tally = Tally()
    for index, answer in enumerate(answers):
        key = None if answer == "-" else answer
        tally.add(Ballot(Chain("0", index, (1,), "", 0.0, None, "stop", 0.0, 1), key, key, 0.0))
    return tally


def log(problems: int = 400, chains: int = 16) -> list[list[tuple[str | None, bool]]]:
    """A third is easy, a third a close race that the right answer wins, a third never right, each answer its own."""
    rng = random.Random(5)
    found = []
    for number in range(problems):
        kind = number % 3
        mine: list[tuple[str | None, bool]] = []
        for index in range(chains):
            right = rng.random() < (0.97, 0.6, 0.0)[kind]
            mine.append(("good", True) if right else ("bad" if kind < 2 else f"w{index}", False))
        found.append(mine)
    return found


def test_a_tie_gains_and_a_settled_or_hopeless_vote_does_not() -> None:
    gains = fit_gains(log())
    tie, ahead, settled, hopeless = (gains.of(votes(text)) for text in ("ab", "aab", "aaaaaa", "abcdef"))
    assert tie > 2 * ahead
    assert ahead > settled
    assert hopeless == pytest.approx(1e-5)
    assert settled < tie / 20
    assert gains.of(votes("")) > tie  # without a chain there is no answer at all


def test_states_that_were_never_seen_are_read_off_their_like() -> None:
    gains = Gains({(2, 1, 1): 0.03, (4, 3, 1): 0.001})
    assert gains.of(votes("ab")) == 0.03
    assert gains.at((3, 1, 1)) == pytest.approx(0.7 * 0.03)
    assert gains.at((9, 8, 1)) == pytest.approx(0.7 * 0.001)
    assert gains.of(votes("-ab")) == gains.at((3, 1, 1))  # a chain without an answer is a chain


def test_few_problems_say_little() -> None:
    many, few = fit_gains(log(600)), fit_gains(log(6))
    assert 0 <= few.at((2, 1, 1)) < many.at((2, 1, 1))
    assert fit_gains(log(30)) == fit_gains(log(30))
