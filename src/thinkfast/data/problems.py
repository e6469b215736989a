"""What a model is asked: `Problem`, and where problems come from.

A reference is a procedural split (`tiny_test`, or `tiny_test:6` for one difficulty), the name of a data set
(`gsm8k_test500`) found in $THINKFAST_DATA, ./data or ../shared/data, a path to any JSONL or Parquet file whose lines
hold "question" and "answer" (and, if they like, "id", "solution", "level", "subject", "source"), or such a file in a
data set of a model hub, `hub:ORG/NAME/FILE`. GSM8K's and MATH's own files are read as they are published.

Usage: `load_problems("tiny_test", limit=100)`
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinkfast.data.boxed import last_boxed
from thinkfast.errors import ModelError, ProblemError
from thinkfast.jsonl import read_jsonl
from thinkfast.models.sources import hub

SIZES = {"tiny_train": 2_000, "tiny_val": 500, "tiny_test": 500}
"""Problems in each procedural reference when no limit is given; a limit may ask for more."""

KINDS = (".jsonl", ".parquet")
_ALIASES = {"problem": "question", "unique_id": "id", "type": "subject"}
"""MATH's names of our fields."""
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/(.+\.(?:jsonl|parquet))(?:@([\w./-]+))?")
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_GSM8K_ANSWER = "\n#### "


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with what is known about it; `solution` is a written chain of thought."""

    id: str
    question: str
    answer: str | None
    solution: str | None
    source: str
    level: int | None = None
    subject: str | None = None


def load_problems(ref: str, limit: int | None = None, seed: int | None = None) -> list[Problem]:
    """Problems of a reference: the first `limit` of them, or with a seed a random but fixed `limit` of them (of a
    procedural split: `limit` other problems of the same split).

    Raises ProblemError when the reference is unknown or a line is unusable (it names file:line and the remedy).
    """
    if limit is not None and limit < 1:
        raise ProblemError(f"limit is {limit}", remedy="ask for at least one problem, or leave the limit out")
    name, _, level = ref.partition(":")
    if name in SIZES:
        return _procedural(name, level, limit, seed)
    problems = _read(_find(ref))
    if seed is not None:
        from thinkfast.data.dice import Dice

        problems = list(Dice.of("load_problems", seed).some(problems, len(problems)))
    return problems[:limit]


def _procedural(name: str, level: str, limit: int | None, seed: int | None) -> list[Problem]:
    from thinkfast.data.procedural import LEVELS, SEED, generate

    if level and level not in map(str, LEVELS):
        raise ProblemError(
            f"{name}:{level} names no difficulty", remedy=f"use {name}:{LEVELS[0]} to {name}:{LEVELS[-1]}, or {name}"
        )
    split = name.removeprefix("tiny_")
    count = limit or SIZES[name]
    return [generate(i, split, int(level) if level else None, SEED if seed is None else seed) for i in range(count)]


def _folders() -> list[Path]:
    root = Path(__file__).resolve().parents[3]  # the repository, where the package is installed from a checkout
    named = os.environ.get("THINKFAST_DATA")
    bases = [base / part for base in (Path.cwd(), root) for part in ("data", "../shared/data")]
    return [Path(named), *bases] if named else bases


def _find(ref: str) -> Path:
    if ref.startswith(hub.PREFIX):
        return _from_hub(ref.removeprefix(hub.PREFIX))
    path = Path(ref)
    if path.suffix in KINDS and path.is_file():
        return path
    for folder in _folders():
        for name in (ref, f"{ref}.jsonl"):
            if name.endswith(".jsonl") and (folder / name).is_file():
                return folder / name
    known = sorted({p.stem for folder in _folders() if folder.is_dir() for p in folder.glob("*.jsonl")} | set(SIZES))
    raise ProblemError(
        f"no problems named {ref!r}",
        remedy=f"use one of {', '.join(known)}, a path to a .jsonl file, hub:ORG/NAME/FILE, or set THINKFAST_DATA to "
        "its folder",
    )


def _from_hub(name: str) -> Path:
    match = _HUB_FILE.fullmatch(name)
    if match is None:
        raise ProblemError(
            f"{name!r} is no file of a hub's data set",
            remedy="write hub:ORG/NAME/FILE.jsonl or .parquet, as in hub:HuggingFaceH4/MATH-500/test.jsonl",
        )
    try:
        return hub.file(match[1], match[2], match[3], kind="dataset")
    except ModelError as error:
        raise ProblemError(error.message, remedy=error.remedy) from error


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every row with its number, counted from 1 as an editor does."""
    if path.suffix == ".parquet":
        yield from enumerate(_parquet(path), start=1)
        return
    rows = list(read_jsonl(path, error=ProblemError))
    with path.open("rb") as file:
        numbers = [number for number, line in enumerate(file, start=1) if line.strip()]
    yield from zip(numbers, rows, strict=True)


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ProblemError(f"reading {path} needs pyarrow", remedy="pip install pyarrow, or use JSONL") from error
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of these
        raise ProblemError(f"{path} is no Parquet file: {error}", remedy="download it again") from error
    return rows


def _read(path: Path) -> list[Problem]:
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    for number, row in _rows(path):
        problem = _problem(row, path, number)
        if problem.id in lines:
            raise ProblemError(
                f"{path}:{number}: id {problem.id!r} is also on line {lines[problem.id]}",
                remedy="give every problem its own id, or leave ids out",
            )
        lines[problem.id] = number
        problems.append(problem)
    if not problems:
        raise ProblemError(f"{path} holds no problems", remedy='write one {"question": ..., "answer": ...} per line')
    return problems


def _problem(row: dict[str, Any], path: Path, number: int) -> Problem:
    def fail(what: str, remedy: str) -> ProblemError:
        return ProblemError(f"{path}:{number}: {what}", remedy=remedy)

    row = {_ALIASES[name]: value for name, value in row.items() if name in _ALIASES and _ALIASES[name] not in row} | row
    if "answer" not in row and isinstance(row.get("solution"), str):  # MATH marks it in the solution alone
        row["answer"] = last_boxed(row["solution"])
    question = _text(row, "question", fail)
    # An empty answer means "unknown" (MATH has one such line); a missing one is more likely a misnamed field.
    answer = None if row.get("answer") == "" else _text(row, "answer", fail)
    solution = _text(row, "solution", fail) if row.get("solution") is not None else None
    if (
        answer is not None and solution is None and _GSM8K_ANSWER in answer
    ):  # the public GSM8K files keep the chain in "answer"
        solution, answer = answer, answer.rpartition(_GSM8K_ANSWER)[2].strip()
    level = row.get("level")
    if level in ("?", "Level ?"):  # MATH's own mark for an unknown level
        level = None
    if level is not None and not re.fullmatch(r"(Level )?\d+", str(level)):
        raise fail(f"level {level!r} is no whole number", "write a number such as 3, or leave it out")
    return Problem(
        id=_text(row, "id", fail) if row.get("id") is not None else f"{path.stem}-{number:05d}",
        question=question,
        answer=answer,
        solution=_CALCULATOR.sub("", solution) if solution is not None else None,
        source=_text(row, "source", fail) if row.get("source") is not None else path.stem,
        level=None if level is None else int(str(level).removeprefix("Level ")),
        subject=None if row.get("subject") is None else str(row["subject"]),
    )


def _text(row: dict[str, Any], field: str, fail: Callable[[str, str], ProblemError]) -> str:
    """A field as stripped text; numbers are taken as they are written."""
    value = row.get(field)
    if value is None:
        raise fail(f"no {field!r}", f'add "{field}" to the line')
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise fail(f"{field!r} is not text", f'write "{field}" as a string')
    text = str(value).strip()
    if not text:
        raise fail(f"{field!r} is empty", f"fill in {field!r} or delete the line")
    return text
