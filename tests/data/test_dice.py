"""Dice: frozen draws, fair ranges."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thinkfast.data.dice import Dice


def test_draws_are_frozen() -> None:
    dice = Dice.of(20339, "train", None, 0)
    assert [dice.below(1000) for _ in range(6)] == [756, 687, 364, 312, 490, 919]
    assert Dice.of(1, 23).below(10**9) != Dice.of(12, 3).below(10**9)


@given(st.integers(0, 2**63), st.integers(-50, 50), st.integers(0, 50))
def test_between_stays_in_range(seed: int, low: int, extra: int) -> None:
    dice = Dice(seed)
    drawn = [dice.between(low, low + extra) for _ in range(20)]
    assert all(low <= n <= low + extra for n in drawn)


def test_between_reaches_both_ends_and_takes_an_empty_range() -> None:
    dice = Dice(1)
    assert {dice.between(2, 4) for _ in range(100)} == {2, 3, 4}
    assert dice.between(5, 3) == 5


@given(st.integers(0, 2**63), st.lists(st.integers(), unique=True, min_size=1, max_size=12))
def test_some_is_a_selection_without_repeats(seed: int, items: list[int]) -> None:
    dice = Dice(seed)
    for k in range(len(items) + 1):
        drawn = dice.some(items, k)
        assert len(set(drawn)) == k
        assert set(drawn) <= set(items)
    assert sorted(dice.some(items, len(items))) == sorted(items)
