from __future__ import annotations

import itertools

import pytest

from thinkfast.judge.rounds import first_wave, next_wave, share_out, turns


@pytest.mark.parametrize(
    ("n", "rows", "problems", "cpu", "size"),
    [
        (64, 64, 1, True, 8),
        (4, 64, 1, True, 4),
        (64, 2, 1, True, 2),
        (64, 64, 3, True, 8),
        (64, 64, 100, True, 100),  # nobody is left without a chain
        (64, 64, 1, False, 64),
        (16, 64, 10, False, 160),
        (64, 1, 1, True, 1),
        (64, 1, 5, False, 5),
    ],
)
def test_first_wave(n: int, rows: int, problems: int, cpu: bool, size: int) -> None:
    assert first_wave(n, rows, problems, cpu) == size


@pytest.mark.parametrize(
    ("left", "rest", "rows", "size"),
    [
        (60.0, 56, 64, 56),
        (float("inf"), 56, 64, 56),
        (3.5, 56, 64, 28),  # 8 chains took 1 s, so 3.5 s are good for 28 at least
        (8.0, 500, 64, 500),  # a full batch fits: the engine refills free rows by itself
        (0.9, 56, 64, 7),
        (0.01, 56, 64, 1),
        (-0.1, 56, 64, 1),
        (60.0, 56, 1, 1),
    ],
)
def test_next_wave(left: float, rest: int, rows: int, size: int) -> None:
    assert next_wave(8, took=1.0, left=left, rest=rest, rows=rows) == size


def test_shares_go_to_whoever_has_begun_the_fewest() -> None:
    assert share_out(5, [0, 0, 0]) == [2, 2, 1]
    assert share_out(3, [2, 0, 1]) == [0, 2, 1]
    assert share_out(1, [4, 4]) == [1, 0]


def test_turns_are_even_while_few_have_begun_and_long_later() -> None:
    assert list(itertools.islice(turns(64, 100), 6)) == [1, 2, 4, 8, 8, 8]
    assert list(itertools.islice(turns(64, 2), 3)) == [32, 32, 32]
    assert list(itertools.islice(turns(2, 3), 3)) == [1, 1, 1]
    assert list(itertools.islice(turns(1, 3), 3)) == [1, 1, 1]
