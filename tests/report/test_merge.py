from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thinkfast.errors import InputError, OutputError
from thinkfast.report.merge import merge_runs
from thinkfast.report.render import render_report
from thinkfast.report.results import load_results
from thinkfast.report.samples import SAMPLES, read_rows, row_dict

Make = Callable[..., Any]


Change = Callable[[dict[str, Any]], None] | None


def run(folder: Path, made: Make, seed: int = 0, change: Change = None, **more: Any) -> Path:
    folder.mkdir()
    results, rows = made(seed=seed, **more)
    evaluation = results["eval"]
    evaluation["config"]["seed"] = seed
    if change:
        change(evaluation)
    (folder / "eval.json").write_text(json.dumps(evaluation))
    (folder / SAMPLES).write_text("".join(json.dumps(row_dict(row)) + "\n" for row in rows))
    return folder


def test_samples_of_two_machines_become_one_log(tmp_path: Path, made: Make) -> None:
    a, b = run(tmp_path / "a", made, 0), run(tmp_path / "b", made, 1)
    merge_runs([a, b], tmp_path / "all")
    rows = read_rows(tmp_path / "all" / SAMPLES)
    assert len(rows) == len(read_rows(a / SAMPLES)) + len(read_rows(b / SAMPLES))
    assert {row.sample for row in rows} == set(range(16))
    results = load_results(tmp_path / "all")
    assert all(system["complete_samples"] == 16 for system in results["eval"]["systems"])
    report = render_report(results, tmp_path / "all")
    assert report.summary.table[0].samples == 16


def test_other_systems_stand_beside_each_other(tmp_path: Path, made: Make, kind: Any) -> None:
    a = run(tmp_path / "a", made, systems=(kind("tiny"),))
    b = run(tmp_path / "b", made, systems=(kind("pure", "pure"),))
    whole = merge_runs([a, b], tmp_path / "all")
    assert [system["name"] for system in whole["systems"]] == ["tiny", "pure"]


def _weights(run: dict[str, Any]) -> None:
    run["systems"][0]["sha"] = "f" * 64


def _hotter(run: dict[str, Any]) -> None:
    run["config"]["temperature"] = 2.0


def _other_gold(run: dict[str, Any]) -> None:
    run["problems"][3]["answer"] = "999"


@pytest.mark.parametrize(
    ("seed", "change", "words"),
    [
        (0, None, "both were drawn with seed 0"),
        (1, _weights, "'tiny' has other weights"),
        (1, _hotter, "another temperature: None and 2.0"),
        (1, _other_gold, "different problems, for example 'tiny-test-0003'"),
    ],
)
def test_what_does_not_belong_together_is_not_merged(
    tmp_path: Path, made: Make, seed: int, change: Change, words: str
) -> None:
    folders = [run(tmp_path / "a", made, 0), run(tmp_path / "b", made, seed, change)]
    with pytest.raises(InputError, match=words):
        merge_runs(folders, tmp_path / "all")
    assert not (tmp_path / "all").exists()
    with pytest.raises(InputError, match="1 run to merge"):
        merge_runs(folders[:1], tmp_path / "all")


def test_an_evaluation_is_not_overwritten(tmp_path: Path, made: Make) -> None:
    a, b = run(tmp_path / "a", made, 0), run(tmp_path / "b", made, 1)
    merge_runs([a, b], tmp_path / "all")
    before = (tmp_path / "all" / SAMPLES).read_text()
    with pytest.raises(OutputError, match="holds an evaluation already"):
        merge_runs([a, b], tmp_path / "all")
    assert (tmp_path / "all" / SAMPLES).read_text() == before
