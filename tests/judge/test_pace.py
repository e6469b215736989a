from __future__ import annotations

import math

from thinkfast.judge.pace import OPENING, Pace

LIMIT = 512


def cpu(rows: int = 64, lengths: tuple[int, ...] = (100,) * 20) -> Pace:
    """A step costs 1 ms a row."""
    pace = Pace(rows, flat=False)
    for count in (1, 8, 64):
        pace.stepped(count, 0.001 * count)
    for length in lengths:
        pace.ended(length)
    return pace


def test_before_anything_is_known() -> None:
    assert Pace(64, flat=False).width(5.0, [], LIMIT) == OPENING
    assert Pace(4, flat=False).width(5.0, [], LIMIT) == 4
    assert Pace(64, flat=True).width(5.0, [], LIMIT) == 64
    assert Pace(64, flat=False).width(math.inf, [], LIMIT) == 64
    assert Pace(64, flat=False).hopeless(0.1, [], LIMIT) == []
    assert Pace(64, flat=False).hopeless(0.1, [50], LIMIT) == []


def test_a_step_is_between_what_was_measured() -> None:
    pace = cpu()
    assert pace.step(8) == 0.008
    assert math.isclose(pace.step(36), 0.036)
    assert math.isclose(Pace(64, flat=False).step(8), 0.0)
    assert math.isclose(cpu().step(128), 0.128)  # in proportion beyond
    eight = Pace(64, flat=False)
    eight.stepped(8, 0.008)
    assert eight.step(4) == 0.006
    assert eight.step(4, hopeful=True) == 0.004
    eight.stepped(8, 0.016)
    assert 0.008 < eight.step(8) < 0.016  # a running mean


def test_as_many_as_can_finish_and_none_that_cannot() -> None:
    pace = cpu()
    assert pace.width(100.0, [], LIMIT) == 64
    assert pace.width(1.7, [], LIMIT) == 16  # 100 steps of 16 ms
    assert pace.width(0.25, [], LIMIT) == 2
    assert pace.width(0.05, [], LIMIT) == 0
    flat = Pace(64, flat=True)
    flat.stepped(64, 0.01)
    flat.ended(100)
    assert flat.width(1.2, [], LIMIT) == 64
    assert flat.width(0.8, [], LIMIT) == 0


def test_running_chains_are_not_slowed_past_the_deadline() -> None:
    pace = cpu()
    # 8 chains with 20 tokens to go: they need 20 steps, and a new one 100.
    assert pace.width(0.2, [80] * 8, LIMIT) == 8
    assert pace.width(60.0, [80] * 8, LIMIT) == 64


def test_long_chains_that_run_make_the_short_ones_that_ended_less_typical() -> None:
    short = cpu(lengths=(20, 20))
    assert short._all([]).tolist() == [20, 20]
    assert short._all([200]).tolist() == [20, 20, 250]


def test_what_cannot_finish_is_cut_for_what_can() -> None:
    pace = cpu()
    # In 0.085 s four rows make 21 steps and eight only 10: the four that need 20 are kept.
    assert pace.hopeless(0.085, [80, 10, 80, 10, 80, 10, 80, 10], LIMIT) == [1, 3, 5, 7]
    assert pace.hopeless(0.2, [80] * 8, LIMIT) == []
    assert pace.hopeless(100.0, [80, 10], LIMIT) == []
    assert pace.hopeless(math.inf, [80, 10], LIMIT) == []
    # The limit ends a chain whatever its text is doing, so there is nothing to gain by a cut.
    assert pace.hopeless(0.1, [508, 10], LIMIT) == []
