from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thinkfast.errors import InputError
from thinkfast.judge.confidence import Calibration, Leading, calibration_error, fit_one, of_folder
from thinkfast.judge.gains import Gains
from thinkfast.judge.tally import Standing
from thinkfast.models.loading import ASSETS


def votes(count: int, seed: int) -> list[Leading]:
    """Leaders whose chance of being right is known: it grows with the lead in votes."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        total = int(rng.integers(1, 33))
        won = int(rng.integers(1, total + 1))
        odds = ((won + 0.5) / (total - won + 0.5)) ** 0.8 * 0.7
        found.append(Leading(won, won / total, total, bool(rng.random() < odds / (1 + odds))))
    return found


def standing(vote: Leading) -> Standing:
    return Standing("", "", vote.count, vote.share, 0, float(vote.count))


def test_what_was_fitted_holds_on_other_votes() -> None:
    calibration = Calibration({"majority": fit_one(votes(3000, 0))}, "synthetic", 3000, 3000)
    fresh = votes(3000, 1)
    claimed = np.array([calibration.confidence(standing(v), v.total) for v in fresh])
    right = np.array([v.right for v in fresh])
    assert calibration_error(claimed, right) < 0.04
    assert calibration_error(np.array([v.share for v in fresh]), right) > 0.08
    sure = calibration.confidence(Standing("", "", 16, 1.0, 0, 16.0), 16)
    unsure = calibration.confidence(Standing("", "", 6, 6 / 16, 0, 6.0), 16)
    assert sure is not None
    assert unsure is not None
    assert 0 < unsure < 0.5 < sure < 1


def test_nothing_is_claimed_without_a_fit() -> None:
    calibration = Calibration({"majority": fit_one(votes(200, 0))}, "x", 200, 200)
    assert calibration.confidence(None, 4) is None
    assert calibration.confidence(Standing("", "", 1, 1.0, 0, 1.0), 1, "weighted") is None


def test_it_travels_with_the_model(tmp_path: Path) -> None:
    assert of_folder(tmp_path) is None
    gains = Gains({(2, 1, 1): 0.04, (3, 2, 1): 0.0})
    calibration = Calibration({"majority": fit_one(votes(200, 0))}, "x", 200, 200, gains)
    calibration.save(tmp_path / "calibration.json")
    assert of_folder(tmp_path) == calibration
    (tmp_path / "calibration.json").write_text('{"voters": {"majority": [1, 2]}}')
    with pytest.raises(InputError, match="cannot read the calibration"):
        of_folder(tmp_path)
    for name in ("tiny", "tiny-hybrid"):
        shipped = of_folder(ASSETS / name)
        assert shipped is not None
        assert shipped.fitted_on == "tiny_val"
        assert {"majority", "certainty", "likelihood"} <= set(shipped.voters)


def test_votes_that_say_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="10 votes"):
        fit_one(votes(10, 0))
    with pytest.raises(InputError, match="do not say how confident"):
        fit_one([Leading(1, 1.0, 1, True)] * 100)
