"""The tables and figures beside the curves: levels, subjects, voters, live and replay, confidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from thinkfast.report.evidence import agreement_table, breakdown_tables, voter_table
from thinkfast.report.intervals import Estimate
from thinkfast.report.live import LIVE, Agreement, LiveRow, save_times
from thinkfast.report.render import render_report
from thinkfast.report.replay import StepTimes
from thinkfast.report.samples import SAMPLES, row_dict
from thinkfast.report.summary import summarise

Make = Callable[..., Any]


def test_levels_and_subjects(made: Make) -> None:
    results, rows = made()
    (by_level,) = breakdown_tables(summarise(results, rows), results)  # there is one subject only
    assert by_level.title == "By level"
    assert [line.cells[0].text for line in by_level.lines] == ["4", "", "5", "", "6", ""]
    assert all(line.cells[0].small == "4 problems" for line in by_level.lines[::2])
    assert {len(line.cells) for line in by_level.lines} == {len(by_level.columns)}
    for problem in results["eval"]["problems"]:
        problem["level"] = None
    assert breakdown_tables(summarise(results, rows), results) == []


def test_voters_are_shown_where_the_log_can_serve_them(made: Make) -> None:
    results, rows = made()
    assert voter_table(summarise(results, rows), ("majority", "certainty", "weighted")) is None
    scored = [replace(row, certainty=1.0 + bool(row.correct), score=0.9 if row.correct else 0.1) for row in rows]
    table = voter_table(summarise(results, scored), ("certainty", "weighted"))
    assert table is not None
    assert [line.cells[1].text for line in table.lines] == ["majority", "certainty", "weighted"] * 2
    weighted = table.lines[2].cells
    assert weighted[4].text.startswith("+")  # scores that know the truth help


def test_agreement_says_who_differs() -> None:
    half, most = Estimate(0.5, 0.4, 0.6, 20), Estimate(0.9, 0.8, 1.0, 20)
    same, other = Agreement("s", 1.0, half, half, 0.0, -0.1, 0.1), Agreement("s", 2.0, half, most, -0.4, -0.5, -0.3)
    table = agreement_table([same, other], {"s": "mine"})
    assert table is not None
    assert [line.cells[-1].text for line in table.lines] == ["agree", "differ"]
    assert agreement_table([], {}) is None


def test_a_report_with_live_runs_draws_all_of_it(made: Make, tmp_path: Path) -> None:
    results, rows = made(problems=6, n=4)
    results["eval"]["systems"][0]["model"] = "tiny"
    (tmp_path / SAMPLES).write_text("".join(json.dumps(row_dict(row)) + "\n" for row in rows))
    ids = [problem["id"] for problem in results["eval"]["problems"]]
    live = [
        LiveRow("tiny", budget, name, "1", at % 2 == 0, 0.5, 0.6, budget, 4, 400)
        for budget in (0.5, 5.0)
        for at, name in enumerate(ids)
    ]
    (tmp_path / LIVE).write_text("".join(json.dumps(asdict(row)) + "\n" for row in live))
    save_times(tmp_path, {"tiny": (StepTimes(((1, 0.001), (8, 0.004)), 1e-5), 8)}, dict.fromkeys(ids, 40))
    report = render_report(results, tmp_path)
    page = report.html.read_text()
    for part in ('id="live"', 'id="pareto"', 'id="calibration"', "Live and replayed", "By level", "tokens per problem"):
        assert part in page
    names = {path.stem for path in report.pictures}
    assert {"tokens", "pareto", "calibration", "live_and_replay"} <= names
    for name in names:
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
    figures = json.loads((tmp_path / "report.json").read_text())
    assert [each["budget"] for each in figures["live_and_replay"]] == [0.5, 5.0]
    assert "## Live and replayed" in report.markdown.read_text()
