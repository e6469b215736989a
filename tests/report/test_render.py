from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pytest

from thinkfast.errors import InputError
from thinkfast.report.render import Report, markdown_table, render_report
from thinkfast.report.results import load_results
from thinkfast.report.samples import SAMPLES, Row, row_dict
from thinkfast.report.summary import summarise
from thinkfast.report.tables import Cell, Line, Table


def draw(folder: Path, results: dict[str, Any], rows: list[Row]) -> Report:
    (folder / SAMPLES).write_text("".join(json.dumps(row_dict(row)) + "\n" for row in rows))
    return render_report(results, folder)


class Page(HTMLParser):
    """What matters of a page: addresses it would fetch, ids, unclosed tags, text."""

    VOID: ClassVar = {"meta", "link", "input", "br", "img"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.scripts = 0
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(html: str) -> Page:
    page = Page(html)
    assert page.open == []
    assert [address for address in page.addresses if not address.startswith(("#", "data:"))] == []
    assert not re.search(r"https?:|@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", html)
    assert len(page.ids) == len(set(page.ids))
    for target in re.findall(r"url\(#([^)]+)\)", html):
        assert target in page.ids
    return page


def everything(make: Any, made: Any) -> tuple[dict[str, Any], list[Row]]:
    systems = [
        made("tiny", "teacher", 0.6, 4000),
        made("tiny-hybrid", "hybrid", 0.58, 7000, "full"),
        made("tiny-pure", "pure", 0.5, 8500, "full"),
        made("hybrid-now", "hybrid", 0.5, 7000, "now"),
        made("pure-now", "pure", 0.4, 8500, "now"),
    ]
    results, rows = make(systems, problems=12, n=16, seconds=3.0, distillation=True, bench=True)
    results["notes"] = ["A <quick> run."]
    return results, rows


@pytest.fixture(scope="module")
def full(made: Any, kind: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, dict[str, Any], list[Row]]:
    results, rows = everything(made, kind)
    return draw(tmp_path_factory.mktemp("full"), results, rows), results, rows


def test_the_page_is_whole_and_fetches_nothing(full: tuple[Report, dict[str, Any], list[Row]]) -> None:
    report = full[0]
    page = check_page(report.html.read_text())
    for words in (
        "Accuracy against measured seconds",
        "Who leads when",
        "All systems",
        "At equal seconds",
        "Distilled just now, distilled fully",
        "pass@k",
        "Look at the chains",
        "How this was measured",
        "A <quick> run.",
        "37df4bf0123456789",
        "A CPU @ 2.0 GHz",
        "teacher against transformers generate",
        report.summary.headline.title,
    ):
        assert words in page.text
    assert page.scripts == 2  # the slider's data and its code: what a problem says is text
    assert "<script>alert(1)</script>" in page.text


def test_pictures_markdown_and_json_are_there(full: tuple[Report, dict[str, Any], list[Row]]) -> None:
    report = full[0]
    names = ["coverage_vs_seconds", "majority_vs_seconds", "samples", "tokens", "pareto", "throughput", "distillation"]
    assert [path.stem for path in report.pictures] == names
    for path in report.pictures:
        assert path.read_bytes().startswith(b"\x89PNG")
    text = report.markdown.read_text()
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in tables if "tiny-hybrid" in line and "+" not in line}) >= 1
    assert "| tiny Transformer |" in text
    found = json.loads((report.html.parent / "report.json").read_text())
    assert set(found["systems"]) == {"tiny", "tiny-hybrid", "tiny-pure", "hybrid-now", "pure-now"}
    assert len(found["winners"]) == len(found["budgets"])


def test_drawing_again_gives_the_same_files(full: tuple[Report, dict[str, Any], list[Row]]) -> None:
    report, results, _ = full
    folder = report.html.parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "results.json").write_text(json.dumps(results))
    render_report(load_results(folder), folder)
    (folder / "results.json").unlink()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def no_rows(results: dict[str, Any], rows: list[Row]) -> list[Row]:
    for record in results["eval"]["systems"]:
        record.update(complete_samples=0, samples=0, generated_tokens=0, tokens_per_second=0.0, ended="seconds")
    return []


def no_time(results: dict[str, Any], rows: list[Row]) -> list[Row]:
    no_rows(results, rows)
    for record in results["eval"]["systems"]:
        record.update(wall_seconds=0.0)
    return []


def all_unknown(results: dict[str, Any], rows: list[Row]) -> list[Row]:
    import dataclasses

    return [dataclasses.replace(row, correct=None) for row in rows]


def all_silent(results: dict[str, Any], rows: list[Row]) -> list[Row]:
    import dataclasses

    return [dataclasses.replace(row, answer=None, key=None, correct=False) for row in rows]


def one_system_empty(results: dict[str, Any], rows: list[Row]) -> list[Row]:
    results["eval"]["systems"][0].update(complete_samples=0, samples=0)
    return [row for row in rows if row.system != results["eval"]["systems"][0]["name"]]


@pytest.mark.parametrize("change", [no_rows, no_time, all_unknown, all_silent, one_system_empty])
def test_logs_with_little_in_them_are_drawn(made: Any, tmp_path: Path, change: Callable[..., list[Row]]) -> None:
    results, rows = made()
    report = draw(tmp_path, results, change(results, rows))
    check_page(report.html.read_text())
    assert {"coverage_vs_seconds", "majority_vs_seconds", "samples"} <= {path.stem for path in report.pictures}
    assert report.summary.headline.title


@pytest.mark.parametrize(("problems", "n", "skill"), [(1, 1, 0.0), (1, 8, 1.0), (5, 1, 0.0)])
def test_few_problems_few_samples_all_wrong_all_right(
    made: Any, kind: Any, tmp_path: Path, problems: int, n: int, skill: float
) -> None:
    results, rows = made([kind("tiny", "teacher", skill), kind("pure", "pure", skill, 9000)], problems, n)
    report = draw(tmp_path, results, rows)
    check_page(report.html.read_text())
    if skill == 0.0:
        assert "no system has a right answer" in report.summary.headline.title
        assert all(duel is None for cells in report.summary.winners for duel in cells.values())


def test_one_system_alone_is_drawn_without_duels(made: Any, kind: Any, tmp_path: Path) -> None:
    report = draw(tmp_path, *made([kind("tiny")]))
    page = check_page(report.html.read_text())
    assert "Who leads when" not in page.text
    assert "tiny covers" in report.summary.headline.title


def test_students_without_their_teacher_are_drawn(made: Any, kind: Any, tmp_path: Path) -> None:
    report = draw(tmp_path, *made([kind("a", "hybrid"), kind("b", "pure")]))
    assert report.summary.headline.points == ()
    check_page(report.html.read_text())


def test_what_is_missing_is_named(made: Any, tmp_path: Path) -> None:
    results, _ = made()
    with pytest.raises(InputError, match=r"no sample log .*samples\.jsonl"):
        render_report(results, tmp_path)
    with pytest.raises(InputError, match="holds no finished run"):
        load_results(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load_results(tmp_path / "nowhere")
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(InputError, match="holds no JSON object"):
        load_results(tmp_path)
    (tmp_path / "results.json").write_text('{"half')
    with pytest.raises(InputError, match="cannot read"):
        load_results(tmp_path)


def test_a_log_that_lost_chains_is_refused(made: Any) -> None:
    results, rows = made()
    with pytest.raises(InputError, match=r"the sample log has 95 of the 96 chains counted for 'tiny'"):
        summarise(results, rows[1:])


def test_an_evaluation_alone_is_enough(made: Any, tmp_path: Path) -> None:
    results, _ = made()
    (tmp_path / "eval.json").write_text(json.dumps(results["eval"]))
    assert load_results(tmp_path) == {"version": 1, "eval": results["eval"]}


def test_markdown_cells_keep_to_themselves() -> None:
    table = Table("t", ("a", ""), (Line((Cell("x|y", "z"), Cell("1"))),))
    assert markdown_table(table) == "| a |   |\n| --- | ---: |\n| x\\|y z | 1 |"
