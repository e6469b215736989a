"""load_problems: every kind of reference, and every kind of bad line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thinkfast.data.problems import Problem, load_problems
from thinkfast.data.procedural import generate
from thinkfast.errors import ProblemError


def write(path: Path, *rows: dict[str, Any] | str) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def test_procedural_references() -> None:
    problems = load_problems("tiny_test")
    assert problems == [generate(i, "test") for i in range(500)]
    assert load_problems("tiny_test", limit=7) == problems[:7]
    assert {p.level for p in load_problems("tiny_val:8", limit=5)} == {8}
    other = load_problems("tiny_test", limit=7, seed=1)
    assert not {p.id for p in other} & {p.id for p in problems}
    assert not {p.question for p in other} & {p.question for p in problems}
    with pytest.raises(ProblemError, match="tiny_test:12"):
        load_problems("tiny_test:12")


def test_jsonl_with_all_fields_and_with_little(tmp_path: Path) -> None:
    full = {"id": "a", "question": " 1+1? ", "answer": 2, "solution": "It is <<1+1=2>>2.", "level": "Level 3"}
    least = {"question": "?", "answer": "x", "level": "Level ?"}
    unknown = {"question": "why?", "answer": ""}
    path = write(tmp_path / "p.jsonl", full | {"subject": "sums", "source": "me"}, "", least, unknown)
    assert load_problems(path) == [
        Problem("a", "1+1?", "2", "It is 2.", "me", 3, "sums"),
        Problem("p-00003", "?", "x", None, "p"),
        Problem("p-00004", "why?", None, None, "p"),
    ]


def test_public_gsm8k_form_is_split(tmp_path: Path) -> None:
    row = {"question": "How many?", "answer": "She sold 48/2 = <<48/2=24>>24.\n#### 24"}
    (problem,) = load_problems(write(tmp_path / "g.jsonl", row))
    assert (problem.answer, problem.solution) == ("24", "She sold 48/2 = 24.\n#### 24")


def test_names_are_found_in_the_data_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("named", "cwd/data", "shared/data"):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder / f"from_{folder.split('/')[0]}.jsonl", {"question": "?", "answer": folder})
        write(tmp_path / folder / "every.jsonl", {"question": "?", "answer": folder})
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("THINKFAST_DATA", str(tmp_path / "named"))
    for ref, where in (
        ("from_named", "named"), ("from_cwd", "cwd/data"), ("from_shared", "shared/data"),
        ("every", "named"), ("every.jsonl", "named"),
    ):  # fmt: skip
        assert [p.answer for p in load_problems(ref)] == [where]
    with pytest.raises(ProblemError, match=r"(?s)no problems named 'gsm9k'.*every.*from_cwd.*tiny_test"):
        load_problems("gsm9k")


def test_limit_and_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", *({"question": f"q{i}", "answer": "1"} for i in range(50)))
    assert [p.question for p in load_problems(path, limit=3)] == ["q0", "q1", "q2"]
    some = load_problems(path, limit=10, seed=5)
    assert some == load_problems(path, limit=10, seed=5) != load_problems(path, limit=10, seed=6)
    assert len({p.id for p in some}) == 10
    with pytest.raises(ProblemError, match="limit is 0"):
        load_problems(path, limit=0)


GOOD = {"id": "x", "question": "q", "answer": "a"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "1"}, "no 'question'"),
        ({"question": "q"}, "no 'answer'"),
        ({"question": "  ", "answer": "1"}, "'question' is empty"),
        ({"question": "q", "answer": "  "}, "'answer' is empty"),
        ({"question": ["q"], "answer": "1"}, "'question' is not text"),
        ({"question": "q", "answer": True}, "'answer' is not text"),
        ({"question": "q", "answer": "1", "level": "hard"}, "level 'hard' is no whole number"),
        ({"question": "q", "answer": "1", "id": "x"}, "id 'x' is also on line 1"),
        ('{"question": "q", ', "not a JSON object"),
        ("[1, 2]", "not a JSON object"),
    ],
)
def test_bad_lines_name_file_line_and_remedy(tmp_path: Path, row: dict[str, Any] | str, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", GOOD, "", row)
    with pytest.raises(ProblemError) as caught:
        load_problems(path)
    assert message in caught.value.message
    assert f"{path}:3:" in caught.value.message
    assert caught.value.remedy


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="holds no problems"):
        load_problems(write(tmp_path / "none.jsonl", "", ""))
