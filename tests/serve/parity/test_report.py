from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from thinkfast.errors import InputError
from thinkfast.serve.parity.report import Check, ParityReport

GOOD = Check("logits", "another program", 1.5e-5, 2e-4, "", "3 positions", 0.5)
REPORT = ParityReport(
    "m", "ab" * 32, "pure", 7, False, "tiny_test", (GOOD,), ((10, 0.5, 0.25), (20, 0.6, 0.3)), {"seed": 0}
)


@pytest.mark.parametrize(
    ("value", "status", "ok"),
    [
        (1e-5, "passed", True),
        (2e-4, "passed", True),
        (3e-4, "broken", False),
        (math.nan, "broken", False),
        (math.inf, "broken", False),
        (None, "not run", True),
    ],
)
def test_a_row_passes_within_its_bound_and_a_nan_never_does(value: float | None, status: str, ok: bool) -> None:
    check = replace(GOOD, value=value)
    assert check.status == status
    assert replace(REPORT, checks=(GOOD, check)).ok is ok


@pytest.mark.parametrize(
    ("value", "unit", "bound", "shown", "limit"),
    [
        (1.53e-5, "", 2e-4, "1.5e-05", "≤ 2e-04"),
        (3.0, "prompts", 0.0, "3 prompts", "≤ 0"),
        (2.345, "x", 3.0, "2.3 x", "≤ 3"),
        (None, "x", 3.0, "–", "≤ 3"),
    ],
)
def test_how_figures_are_shown(value: float | None, unit: str, bound: float, shown: str, limit: str) -> None:
    check = replace(GOOD, value=value, unit=unit, bound=bound)
    assert (check.shown.strip(), check.limit) == (shown, limit)


def test_json_and_back() -> None:
    plain = json.loads(json.dumps(REPORT.as_json()))
    assert plain["ok"] is True
    assert plain["checks"][0]["status"] == "passed"
    assert ParityReport.from_json(plain) == REPORT


@pytest.mark.parametrize("bad", [{}, [], None, 3, {"version": 2}, {**REPORT.as_json(), "checks": [{"name": "x"}]}])
def test_something_else_is_refused(bad: Any) -> None:
    with pytest.raises(InputError, match="no parity report"):
        ParityReport.from_json(bad)
