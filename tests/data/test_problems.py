"""load_problems: every kind of reference, and every kind of bad line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
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


MATH = {"problem": "Find x.", "level": "Level 5", "type": "Algebra", "solution": "So $x = \\boxed{\\frac{1}{2}}$."}


def test_math_as_it_is_published(tmp_path: Path) -> None:
    """Hendrycks' files have the answer in the solution alone, MATH-500 has it beside."""
    hard = MATH | {"answer": "0.5", "unique_id": "test/algebra/1.json", "subject": "Sums"}
    path = write(tmp_path / "m.jsonl", MATH, hard)
    solution = "So $x = \\boxed{\\frac{1}{2}}$."
    assert load_problems(path) == [
        Problem("m-00001", "Find x.", "\\frac{1}{2}", solution, "m", 5, "Algebra"),
        Problem("test/algebra/1.json", "Find x.", "0.5", solution, "m", 5, "Sums"),
    ]
    with pytest.raises(ProblemError, match="no 'answer'"):
        load_problems(write(tmp_path / "n.jsonl", MATH | {"solution": "I do not know."}))


def test_a_file_of_a_hubs_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache laid out by hand, as its client leaves it after a download; there is no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    root = tmp_path / "hub" / "datasets--org--MATH-500"
    snapshot = root / "snapshots" / ("0123456789abcdef" * 2 + "01234567")
    (snapshot / "sub").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(snapshot.name)
    write(snapshot / "sub" / "test.jsonl", MATH)
    assert load_problems("hub:org/MATH-500/sub/test.jsonl")[0].answer == "\\frac{1}{2}"
    with pytest.raises(ProblemError, match="not in the hub's cache") as caught:
        load_problems("hub:org/MATH-500/train.jsonl")
    assert "HF_HUB_OFFLINE" in caught.value.remedy
    with pytest.raises(ProblemError, match="no file of a hub's data set") as caught:
        load_problems("hub:org/MATH-500")
    assert "hub:ORG/NAME/FILE" in caught.value.remedy


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read where pyarrow is (here a stand-in with its one call), and said so where it is not."""
    path = tmp_path / "p.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ProblemError, match="needs pyarrow") as caught:
        load_problems(str(path))
    assert "pip install pyarrow" in caught.value.remedy

    class Table:
        def to_pylist(self) -> list[dict[str, Any]]:
            return [GOOD, GOOD | {"id": "y"}]

    monkeypatch.setitem(sys.modules, "pyarrow.parquet", SimpleNamespace(read_table=lambda path: Table()))
    assert [problem.id for problem in load_problems(str(path))] == ["x", "y"]

    def refuse(path: Path) -> Table:
        raise ValueError("no footer")

    monkeypatch.setitem(sys.modules, "pyarrow.parquet", SimpleNamespace(read_table=refuse))
    with pytest.raises(ProblemError, match="is no Parquet file: no footer"):
        load_problems(str(path))
