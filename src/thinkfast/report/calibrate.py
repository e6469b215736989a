"""Fit the confidence of votes, and what another chain is worth, to a sample log of problems for development.

Usage: ``calibration = calibrate(rows, "tiny_val"); calibration.save(model_folder / "calibration.json")``.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from thinkfast.errors import InputError
from thinkfast.judge.confidence import Calibration, Leading, fit_one
from thinkfast.judge.gains import fit_gains
from thinkfast.judge.vote import cast_votes
from thinkfast.judge.voters import VOTERS, Voter
from thinkfast.report.samples import Row

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def calibrate(rows: Iterable[Row], fitted_on: str, seed: int = 0) -> Calibration:
    """A calibration for every voter whose values the log holds, from random subsets of each problem's samples.

    Errors: InputError for a test set, or a log that says too little.
    """
    if "test" in fitted_on or fitted_on == "math500":
        raise InputError(
            f"{fitted_on} is for testing", remedy="fit confidence on tiny_val, or another set you may tune on"
        )
    problems: dict[str, list[Row]] = {}
    for row in rows:
        problems.setdefault(row.problem, []).append(row)
    voters = {}
    count = 0
    for name, voter in VOTERS.items():
        if not voter.reads or all(value(row, voter) is not None for mine in problems.values() for row in mine):
            votes = leaders(list(problems.values()), voter, seed)
            voters[name] = fit_one(votes)
            count = len(votes)
    gains = fit_gains([[(row.key, bool(row.correct)) for row in mine] for mine in problems.values()], seed)
    return Calibration(voters, fitted_on, len(problems), count, gains)


def leaders(problems: Sequence[Sequence[Row]], voter: Voter, seed: int = 0) -> list[Leading]:
    """The leader of a vote among a random few of each problem's samples, of every size that there are samples for."""
    rng = random.Random(seed)
    found = []
    for mine in problems:
        right = {row.key for row in mine if row.correct and row.key is not None}
        for size in SIZES:
            if size <= len(mine):
                some = sorted(rng.sample(range(len(mine)), size))
                chosen = [mine[i] for i in some]
                values = [value(row, voter) for row in chosen] if voter.reads else None
                vote = cast_votes([row.key for row in chosen], values, voter=voter)
                if vote.key is not None:
                    found.append(Leading(vote.count, vote.share, vote.total, vote.key in right))
    return found


def value(row: Row, voter: Voter) -> float | None:
    """What a voter reads of a logged chain."""
    if voter.reads == "logprob":
        return None if row.logprob is None else row.logprob / max(row.tokens, 1)
    return row.score if voter.reads == "score" else row.certainty
