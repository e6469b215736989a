"""The sample log: one line per chain, grown by whole units, the one file from which every figure is redrawn.

Why units: a run that is killed must end with the log of one that was not. Chains that share a batch influence each
other's last bits, so work is cut into units that each start from an empty engine, and a unit enters the log as a
whole: its rows first, then its own line in `units.jsonl`. Rows beyond the last such line are of a unit that was
killed; they are cut off when the log is opened again, and the unit is redone.

    with SampleLog(out) as log: log.commit(rows, unit)          # read_rows(out / "samples.jsonl") gives them back
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from thinkfast.errors import InputError, OutputError
from thinkfast.files import output_errors
from thinkfast.jsonl import JsonlLog, read_jsonl

SAMPLES = "samples.jsonl"
UNITS = "units.jsonl"


@dataclass(frozen=True, slots=True)
class Row:
    """One chain of one system.

    sample: its index, 0 .. n-1. tokens: how many it has. answer, key: as extracted and canonical, None without an
    answer. correct: None where not known. finish: why it ended, as in `engine.request`. logprob: sum over its tokens,
    None where not finite. seconds: from the start of that system's run until the chain was finished *and* checked,
    with prefill and queueing, without model loading. certainty: as in `engine.request`, None where not known.
    score: what a reward model or verifier made of it, None without one.
    """

    system: str
    problem: str
    sample: int
    tokens: int
    text: str
    answer: str | None
    key: str | None
    correct: bool | None
    finish: str
    logprob: float | None
    seconds: float
    certainty: float | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Unit:
    """A committed piece of work: samples first .. first+count-1 of every problem by one system.

    rows: chains logged. cut: chains that the budget ended or kept from starting. seconds: the system's clock when
    the unit was over. prompt_tokens, generated_tokens: those of this unit alone, cut chains' included. final: the
    budget ended in it. model_sha, problems_sha: digests of the weights and of the problems it was made with.
    """

    system: str
    first: int
    count: int
    rows: int
    cut: int
    seconds: float
    prompt_tokens: int
    generated_tokens: int
    final: bool
    model_sha: str
    problems_sha: str


class SampleLog:
    """The log in the folder `out`, open for appending units; one writer at a time."""

    def __init__(self, out: Path) -> None:
        self.path = out / SAMPLES
        self._unit_log = JsonlLog(out / UNITS)  # its lock keeps a second run out before anything is cut
        try:
            self.units = self._repair([_unit(line, out / UNITS) for line in self._unit_log.rows()])
            self._row_log = JsonlLog(self.path)
        except BaseException:
            self._unit_log.close()
            raise

    def _repair(self, units: list[Unit]) -> list[Unit]:
        """Cut rows of an unfinished unit; the units whose rows are all there."""
        ends = [0]
        if self.path.is_file():
            with self.path.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        ends.append(ends[-1] + len(line))
        wanted = sum(unit.rows for unit in units)
        if wanted > len(ends) - 1:
            raise OutputError(
                f"{self.path} has {len(ends) - 1} rows, but {UNITS} beside it speaks of {wanted}",
                remedy="restore the file, or begin again in a new folder with --out",
            )
        if self.path.is_file() and self.path.stat().st_size > ends[wanted]:
            with output_errors(self.path):
                os.truncate(self.path, ends[wanted])
        return units

    def commit(self, rows: Sequence[Row], unit: Unit) -> None:
        """Append a unit. Errors: OutputError where the disk is full; the unit is then redone by the next run."""
        for row in rows:
            self._row_log.append(row_dict(row))
        self._unit_log.append(asdict(unit))
        self.units.append(unit)

    def close(self) -> None:
        """Release both files; calling it again does nothing."""
        self._row_log.close()
        self._unit_log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def row_dict(row: Row) -> dict[str, Any]:
    """A row as its JSON object."""
    return asdict(row)


def read_rows(*paths: str | Path) -> list[Row]:
    """The rows of one or more sample logs (runs of several machines merge), in their order.

    Errors: InputError for a file that is no sample log, or where two rows are the same sample.
    """
    rows: list[Row] = []
    seen: set[tuple[str, str, int]] = set()
    for path in paths:
        for number, line in enumerate(read_jsonl(path, allow_torn_end=True), start=1):
            row = _row(line, Path(path), number)
            identity = (row.system, row.problem, row.sample)
            if identity in seen:
                raise InputError(
                    f"{path}:{number}: sample {row.sample} of {row.problem!r} by {row.system!r} is there twice",
                    remedy="merge logs of different samples, or of systems with different names",
                )
            seen.add(identity)
            rows.append(row)
    return rows


_TYPES: Mapping[str, tuple[type, ...]] = {
    "system": (str,),
    "problem": (str,),
    "sample": (int,),
    "tokens": (int,),
    "text": (str,),
    "answer": (str, type(None)),
    "key": (str, type(None)),
    "correct": (bool, type(None)),
    "finish": (str,),
    "logprob": (float, int, type(None)),
    "seconds": (float, int),
    "certainty": (float, int, type(None)),
    "score": (float, int, type(None)),
}


def _row(line: Mapping[str, Any], path: Path, number: int) -> Row:
    # Fields that a later version adds are skipped, so that old readers can draw new logs.
    for name, kinds in _TYPES.items():
        if not isinstance(line.get(name), kinds):
            raise InputError(f"{path}:{number}: {name!r} is missing or of a wrong type", remedy="pass a sample log")
    return Row(**{name: line.get(name) for name in _TYPES})  # type: ignore[arg-type]


def _unit(line: Mapping[str, Any], path: Path) -> Unit:
    try:
        return Unit(**{field.name: line[field.name] for field in fields(Unit)})
    except KeyError as missing:
        raise OutputError(f"{path} has a line without {missing}", remedy="begin again in a new folder") from missing
