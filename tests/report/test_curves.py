"""Curves against seconds agree with voting over what had finished by then."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkfast.errors import InputError
from thinkfast.judge.vote import cast_votes, majority
from thinkfast.judge.voters import VOTERS, Voter
from thinkfast.report.chains import Chains
from thinkfast.report.curves import (
    coverage_by_second,
    coverage_curve,
    majority_by_second,
    vote_by_second,
    vote_curve,
)

Row = tuple[str, str | None, float]
rows = st.lists(
    st.tuples(st.sampled_from("pqr"), st.sampled_from(["1", "2", "3", None]), st.sampled_from([0.5, 1.0, 1.5, 2.0])),
    max_size=20,
)


@given(rows)
def test_curves_are_votes_over_the_finished(chain_rows: list[Row]) -> None:
    problem, key, seconds = ([row[i] for row in chain_rows] for i in range(3))
    chains = Chains.build(problem, key, [k == "1" for k in key], seconds, names=list("pqr"))
    grid = np.array([0.0, 0.5, 1.2, 2.0, 9.0])
    coverage, votes = coverage_by_second(chains, grid), majority_by_second(chains, grid)
    for p, name in enumerate("pqr"):
        for g, t in enumerate(grid):
            done = sorted((s, i, k) for i, (q, k, s) in enumerate(chain_rows) if q == name and s <= t)
            keys = [k for _, _, k in done]
            assert coverage[p, g] == ("1" in keys)
            assert votes[p, g] == (majority(keys).key == "1")


@pytest.mark.parametrize("voter", VOTERS.values(), ids=lambda voter: voter.name)
@given(rows, st.randoms(use_true_random=False))
def test_any_voters_curve_is_its_vote_over_the_finished(voter: Voter, chain_rows: list[Row], rng: Random) -> None:
    problem, key, seconds = ([row[i] for row in chain_rows] for i in range(3))
    scores = [rng.choice([0.1, 0.4, 0.8]) for _ in chain_rows]
    values = dict.fromkeys(("score", "certainty", "logprob"), scores)
    chains = Chains.build(problem, key, [k == "1" for k in key], seconds, names=list("pqr"), values=values)
    grid = np.array([0.0, 0.5, 1.2, 9.0])
    found = vote_by_second(chains, grid, voter)
    for p, name in enumerate("pqr"):
        for g, t in enumerate(grid):
            done = sorted((s, i, k) for i, (q, k, s) in enumerate(chain_rows) if q == name and s <= t)
            vote = cast_votes([k for _, _, k in done], [scores[i] for _, i, _ in done], voter=voter)
            assert found[p, g] == (vote.key == "1")


def simple() -> Chains:
    return Chains.build(
        ["a", "a", "a", "b", "b"], ["6", "5", "5", "7", None], [False, True, True, None, False], [1, 2, 3, 1, 2]
    )


def test_values_and_intervals() -> None:
    grid = np.array([0.5, 1.0, 2.0, 3.0])
    coverage = coverage_curve(simple(), grid)
    assert coverage.value.tolist() == [0.0, 0.0, 0.5, 0.5]
    vote = vote_curve(simple(), grid, VOTERS["majority"])
    assert vote.value.tolist() == [0.0, 0.0, 0.0, 0.5]
    upper = coverage_curve(simple(), grid, unknown="right")
    assert upper.value.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert coverage.unknown_share == pytest.approx(0.2)
    assert coverage.problems == 2
    for curve in (coverage, vote, upper):
        assert (curve.low <= curve.value).all()
        assert (curve.value <= curve.high).all()


def test_problems_without_chains_are_not_solved() -> None:
    chains = Chains.build(["a"], ["5"], [True], [1.0], names=["a", "b"])
    assert coverage_curve(chains, np.array([1.0])).value.tolist() == [0.5]
    nothing = Chains.build([], [], [], [], names=["a", "b"])
    assert vote_curve(nothing, np.array([1.0]), VOTERS["majority"]).value.tolist() == [0.0]
    assert nothing.unknown_share == 0.0


@pytest.mark.parametrize("grid", [[], [np.nan], [-1.0], [[1.0]]])
def test_bad_grids_are_refused(grid: list[float]) -> None:
    with pytest.raises(InputError):
        coverage_curve(simple(), np.array(grid))


def test_no_problems_is_refused() -> None:
    with pytest.raises(InputError):
        coverage_curve(Chains.build([], [], [], []), np.array([1.0]))


@pytest.mark.parametrize(
    "simulations", [pytest.param(400, id="quick"), pytest.param(2000, id="long", marks=pytest.mark.slow)]
)
def test_curve_intervals_cover_the_truth(simulations: int) -> None:
    """A synthetic log with a known truth: a chain of problem p is right with probability p, one ends per second."""
    rng = np.random.default_rng(21)
    problems, grid = 100, np.array([1.0, 4.0])
    nodes = np.random.default_rng(0).random(400_000)
    truth = np.array([(1 - (1 - nodes) ** t).mean() for t in grid])
    covered = np.zeros(2)
    names = [str(p) for p in range(problems)]
    owner = np.repeat(names, 4).tolist()
    seconds = np.tile([1.0, 2.0, 3.0, 4.0], problems).tolist()
    for s in range(simulations):
        right = rng.random((problems, 4)) < rng.random((problems, 1))
        flags = right.ravel().tolist()
        curve = coverage_curve(
            Chains.build(owner, ["1" if f else "0" for f in flags], flags, seconds), grid, resamples=500, seed=s
        )
        covered += (curve.low <= truth) & (truth <= curve.high)
    slack = 0.015 if simulations == 400 else 0.0
    assert (covered / simulations >= 0.93 - slack).all()
    assert (covered / simulations <= 0.97 + slack).all()
