"""Confidence: how often an answer with this share of so many votes was right, on problems whose answers are known.

A share is no probability: five of eight chains that agree may be right nine times in ten for one model and half the
time for another. A calibration is fitted on a sample log of problems for development (never of a test set) and travels
with the model, as ``calibration.json`` in its folder. Without one there is no confidence, rather than a made-up one.

The form is beta calibration with the number of votes: logit P = a + b·logit(count share) + c·logit(weight share)
+ (d + e·logit(count share))·log n, with shares smoothed by half a vote, fitted by penalised maximum likelihood.

Shapes: V votes, F features.

Usage: ``calibration = fit(votes, fitted_on="tiny_val"); calibration.confidence(standings[0], total)``.
Source: Kull et al. 2017, "Beyond sigmoids: beta calibration".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from thinkfast.errors import InputError
from thinkfast.files import atomic_write
from thinkfast.judge.gains import Gains
from thinkfast.judge.tally import Standing

FILE = "calibration.json"
_RIDGE = 1e-2


@dataclass(frozen=True, slots=True)
class Leading:
    """A leader in a vote of known outcome: its votes, its part of the weight, all votes, and whether it is right."""

    count: int
    share: float
    total: int
    right: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """Coefficients by voter, and what they were fitted on: problem set, how many votes of how many problems.

    gains: what another chain was worth there, for `allocate.Learned`.
    """

    voters: dict[str, tuple[float, ...]]
    fitted_on: str
    problems: int
    votes: int
    gains: Gains = field(default_factory=lambda: Gains({}))

    def confidence(self, leader: Standing | None, total: int, voter: str = "majority") -> float | None:
        """Probability that ``leader``, of ``total`` votes, is right; None for a voter it was not fitted for."""
        if leader is None or voter not in self.voters:
            return None
        x = _features(leader.count, leader.share, total)
        return 1 / (1 + math.exp(-float(np.dot(x, self.voters[voter]))))

    def save(self, path: Path) -> None:
        """Write as JSON. Errors: OutputError."""
        lists = [[*state, gain] for state, gain in sorted(self.gains.table.items())]
        whole = {"voters": self.voters, "fitted_on": self.fitted_on, "problems": self.problems, "votes": self.votes}
        text = json.dumps({**whole, "gains": lists}, indent=1)
        atomic_write(path, re.sub(r"\[\s+(\d+),\s+(\d+),\s+(\d+),\s+(\S+)\s+\]", r"[\1, \2, \3, \4]", text) + "\n")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote. Errors: InputError where it is damaged."""
        try:
            found = json.loads(path.read_text())
            voters = {str(name): tuple(map(float, values)) for name, values in found["voters"].items()}
            if any(len(values) != FEATURES for values in voters.values()):
                raise ValueError(f"there should be {FEATURES} coefficients a voter")
            gains = Gains({(int(n), int(a), int(b)): float(gain) for n, a, b, gain in found.get("gains", [])})
            return cls(voters, str(found["fitted_on"]), int(found["problems"]), int(found["votes"]), gains)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"cannot read the calibration {path}: {error}", remedy="fit it again with thinkfast calibrate"
            ) from error


def of_folder(folder: Path) -> Calibration | None:
    """The calibration beside a model's weights; None where it has none. Errors: InputError where it is damaged."""
    path = folder / FILE
    return Calibration.load(path) if path.is_file() else None


def _features(count: int, share: float, total: int) -> NDArray[np.float64]:
    votes = (count + 0.5) / (total - count + 0.5)
    weight = (share * total + 0.5) / ((1 - share) * total + 0.5)
    size = math.log(total)
    return np.array([1.0, math.log(votes), math.log(weight), size, size * math.log(votes)])


FEATURES = 5


def fit_one(votes: Sequence[Leading]) -> tuple[float, ...]:
    """The coefficients [F] of one voter. Errors: InputError where all votes are right, or all wrong, or too few."""
    right = np.array([vote.right for vote in votes], np.float64)
    if len(votes) < 50 or right.min() == right.max():
        raise InputError(
            f"{len(votes)} votes, {int(right.sum())} of them right, do not say how confident to be",
            remedy="calibrate on a log of more problems, some of them solved and some not",
        )
    x = np.stack([_features(vote.count, vote.share, vote.total) for vote in votes])
    centre, scale = x.mean(0), np.where(x.std(0) > 1e-9, x.std(0), 1.0)
    centre[0], scale[0] = 0.0, 1.0
    z = (x - centre) / scale
    penalty = np.full(FEATURES, _RIDGE * len(votes) / 100)
    penalty[0] = 0.0
    w = np.zeros(FEATURES)
    for _ in range(50):  # Newton's method; the likelihood is concave
        p = 1 / (1 + np.exp(-np.clip(z @ w, -30, 30)))
        hessian = (z * (p * (1 - p))[:, None]).T @ z + np.diag(penalty) + 1e-9 * np.eye(FEATURES)
        move = np.linalg.solve(hessian, z.T @ (right - p) - penalty * w)
        w += move
        if float(np.abs(move).max()) < 1e-9:
            break
    out = w / scale
    out[0] -= float(np.dot(out[1:], centre[1:]))
    return tuple(float(value) for value in out)


def calibration_error(confidences: NDArray[np.float64], right: NDArray[np.bool_], bins: int = 10) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over bins of equally many votes."""
    order = np.argsort(confidences, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(len(p) * abs(confidences[p].mean() - right[p].mean()) for p in parts) / len(order))
