from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from thinkfast.cli import build_app
from thinkfast.errors import InputError
from thinkfast.judge.confidence import Calibration
from thinkfast.judge.voters import VOTERS
from thinkfast.report.calibrate import calibrate, leaders
from thinkfast.report.samples import SAMPLES, Row, row_dict


def rows(problems: int = 40, n: int = 16, certainty: bool = True) -> list[Row]:
    rng = random.Random(0)
    found = []
    for p in range(problems):
        skill = rng.random()
        for sample in range(n):
            right = rng.random() < skill
            key = "0" if right else str(rng.randint(1, 3))
            sure = rng.random() + right if certainty else None
            found.append(Row("tiny", f"p{p}", sample, 50, "", key, key, right, "stop", -9.0, 0.1, sure))
    return found


def test_every_voter_that_the_log_can_serve_is_fitted() -> None:
    found = calibrate(rows(), "tiny_val")
    assert set(found.voters) == {"majority", "certainty", "likelihood"}
    assert set(calibrate(rows(certainty=False), "tiny_val").voters) == {"majority", "likelihood"}
    assert (found.problems, found.votes, found.fitted_on) == (40, 40 * 8, "tiny_val")
    assert calibrate(rows(), "tiny_val") == found


def test_leaders_are_of_votes_of_every_size() -> None:
    votes = leaders([rows(1)], VOTERS["majority"])
    assert [vote.total for vote in votes] == [1, 2, 3, 4, 6, 8, 12, 16]
    assert all(vote.share == vote.count / vote.total for vote in votes)


@pytest.mark.parametrize("name", ["tiny_test", "gsm8k_test500", "math500"])
def test_confidence_is_never_fitted_on_a_test_set(name: str) -> None:
    with pytest.raises(InputError, match="is for testing"):
        calibrate(rows(), name)


def test_the_verb_writes_where_solve_reads(tmp_path: Path) -> None:
    (tmp_path / SAMPLES).write_text("".join(json.dumps(row_dict(row)) + "\n" for row in rows()))
    whole = {"config": {"problems": "tiny_val"}, "systems": [{"name": "tiny", "model": "tiny"}], "problems": []}
    (tmp_path / "eval.json").write_text(json.dumps(whole))
    out = tmp_path / "c.json"
    result = CliRunner().invoke(build_app(), ["calibrate", str(tmp_path), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert Calibration.load(out) == calibrate(rows(), "tiny_val")
    wrong = CliRunner().invoke(build_app(), ["calibrate", str(tmp_path), "--system", "x", "--out", str(out)])
    assert wrong.exit_code == 2
