"""Intervals cover the truth as often as they say, and the paired test errs as often as it says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from thinkfast.errors import InputError
from thinkfast.report.intervals import bootstrap, bootstrap_columns, paired, sign_test, wilson

QUICK, LONG = 400, 2000
SIMULATIONS = [pytest.param(QUICK, id="quick"), pytest.param(LONG, id="long", marks=pytest.mark.slow)]


def within(share: float, simulations: int) -> bool:
    """93-97 %, and for the quick version the noise of 400 draws on top (one standard error is 1.1 %)."""
    slack = 0.015 if simulations == QUICK else 0.0
    return 0.93 - slack <= share <= 0.97 + slack


@pytest.mark.parametrize("simulations", SIMULATIONS)
@pytest.mark.parametrize("problems", [20, 150])
@pytest.mark.parametrize(("a", "b"), [(2.0, 1.0), (0.6, 0.6)])
def test_bootstrap_covers_a_mean_of_accuracies(simulations: int, problems: int, a: float, b: float) -> None:
    rng = np.random.default_rng(11)
    truth = a / (a + b)
    covered = 0
    for s in range(simulations):
        e = bootstrap(rng.beta(a, b, problems), resamples=600, seed=s)
        covered += e.low <= truth <= e.high
    assert within(covered / simulations, simulations)


@pytest.mark.parametrize("simulations", SIMULATIONS)
def test_bootstrap_covers_pass_at_k(simulations: int) -> None:
    """The case of a report: problems differ, each has samples, the figure is pass@4 over problems."""
    from thinkfast.report.metrics import pass_at_k

    rng = np.random.default_rng(12)
    n, k, problems = 16, 4, 120
    nodes = np.random.default_rng(0).beta(0.8, 1.2, 400_000)
    truth = float((1 - (1 - nodes) ** k).mean())
    table = np.array([pass_at_k(n, c, k) for c in range(n + 1)])
    covered = 0
    for s in range(simulations):
        values = table[rng.binomial(n, rng.beta(0.8, 1.2, problems))]
        e = bootstrap(values, resamples=600, seed=s)
        covered += e.low <= truth <= e.high
    assert within(covered / simulations, simulations)


@pytest.mark.parametrize("simulations", SIMULATIONS)
@pytest.mark.parametrize("p", [0.2, 0.5, 0.83])
def test_bootstrap_and_wilson_cover_a_proportion(simulations: int, p: float) -> None:
    rng = np.random.default_rng(13)
    n = 200
    by_bootstrap = by_wilson = 0
    for s in range(simulations):
        solved = rng.random(n) < p
        e = bootstrap(solved.astype(float), resamples=600, seed=s)
        by_bootstrap += e.low <= p <= e.high
        low, high = wilson(int(solved.sum()), n)
        by_wilson += low <= p <= high
    assert within(by_bootstrap / simulations, simulations)
    assert within(by_wilson / simulations, simulations)


@pytest.mark.parametrize("simulations", SIMULATIONS)
def test_paired_differences_cover_and_the_p_value_is_honest(simulations: int) -> None:
    rng = np.random.default_rng(14)
    covered = false_alarms = found = 0
    for s in range(simulations):
        hard = rng.beta(1, 1, 80)  # both systems see the same problems, so their scores go together
        one, other = (rng.binomial(8, hard) / 8 for _ in range(2))
        better = rng.binomial(8, hard**0.7) / 8
        same = paired(one, other, resamples=600, seed=s)
        covered += same.low <= 0 <= same.high
        false_alarms += same.p_value < 0.05
        found += paired(better, other, resamples=600, seed=s).p_value < 0.05
    assert within(covered / simulations, simulations)
    assert within(1 - false_alarms / simulations, simulations)
    assert found / simulations > 0.8


def test_the_p_value_needs_pairing() -> None:
    rng = np.random.default_rng(1)
    hard = rng.random(60)
    difference = paired(np.clip(hard + 0.02, 0, 1), hard)
    assert difference.value == pytest.approx(0.02, abs=0.005)
    assert difference.p_value < 0.01
    assert difference.low > 0
    back = paired(hard, np.clip(hard + 0.02, 0, 1))
    assert back.value == pytest.approx(-difference.value)
    assert back.p_value < 0.01


def test_the_sign_test_is_the_binomial_by_the_book() -> None:
    a, b = np.array([1, 1, 1, 1, 1, 0, 1, 0.0]), np.array([0, 0, 0, 0, 0, 1, 1, 0.0])
    assert sign_test(a, b) == pytest.approx(2 * (1 + 6) / 2**6)
    assert sign_test(b, a) == sign_test(a, b)
    assert sign_test(a, a) == 1.0
    assert sign_test(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0


def test_the_sign_test_errs_no_more_often_than_it_says() -> None:
    rng = np.random.default_rng(15)
    p_values = []
    for _ in range(QUICK):
        hard = rng.beta(1, 1, 60)
        p_values.append(sign_test(*((rng.random(60) < hard).astype(float) for _ in range(2))))
    assert np.mean(np.array(p_values) < 0.05) < 0.05 + 0.02


def test_no_difference_at_all() -> None:
    same = paired(np.ones(5), np.ones(5))
    assert (same.value, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_unanimous_problems_are_not_certainty() -> None:
    e = bootstrap(np.ones(20))
    assert (e.value, e.high) == (1.0, 1.0)
    assert 0.8 < e.low < 0.9
    assert bootstrap(np.zeros(20)).high == pytest.approx(1 - e.low)
    one = bootstrap(np.array([1.0]))
    assert (one.low, one.high, one.problems) == (0.0, 1.0, 1)


def test_bootstrap_is_seeded_and_columns_share_their_draws() -> None:
    values = np.random.default_rng(2).random((30, 1)).repeat(3, axis=1)
    mean, low, high = bootstrap_columns(values, resamples=100, seed=4)
    assert low[0] == low[1] == low[2]
    assert (low < mean).all()
    assert (mean < high).all()
    again = bootstrap_columns(values, resamples=100, seed=4)
    assert (again[1] == low).all()
    assert (bootstrap_columns(values, resamples=100, seed=5)[1] != low).all()


def test_chunked_resampling_is_the_same_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from thinkfast.report import intervals

    values = np.random.default_rng(3).random(50)
    whole = bootstrap(values, resamples=500)
    monkeypatch.setattr(intervals, "_CHUNK", 100)
    chunked = bootstrap(values, resamples=500)
    assert (chunked.low, chunked.high) == pytest.approx((whole.low, whole.high))


def test_wilson_known_values() -> None:
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap(np.array([])),
        lambda: bootstrap(np.array([0.5, np.nan])),
        lambda: bootstrap(np.array([0.5, 50.0])),
        lambda: bootstrap(np.array([0.5]), level=95),
        lambda: bootstrap(np.array([0.5]), resamples=0),
        lambda: wilson(1, 0),
        lambda: wilson(3, 2),
        lambda: paired(np.ones(2), np.ones(3)),
        lambda: paired(np.ones(1), np.ones(1)),
        lambda: paired(np.array([1.0, np.nan]), np.ones(2)),
        lambda: sign_test(np.ones(2), np.ones(3)),
        lambda: sign_test(np.array([]), np.array([])),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="remedy"):
        call()
