"""The systems of a report: what `results.json` says of each, its chains as arrays, and how it is drawn.

Why: tables, curves and text all need the same systems in the same order, names and colours; they are settled here,
once, from the results and the sample log alone.

Usage: ``views = build_views(results, read_rows(path)); views[0].chains``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from thinkfast.errors import InputError
from thinkfast.report.chains import Chains
from thinkfast.report.samples import Row
from thinkfast.report.systemrun import SystemRecord

# Okabe and Ito's palette, told apart by colour-blind readers; "now" is a lighter sister of "full".
_COLOURS = {
    ("teacher", ""): "#30343b",
    ("hybrid", ""): "#0072b2",
    ("hybrid", "now"): "#56b4e9",
    ("pure", ""): "#d55e00",
    ("pure", "now"): "#e69f00",
}
_SPARE = ("#009e73", "#cc79a7", "#7a5195", "#8c6d31", "#5f9e9e", "#a05d7a")


@dataclass(frozen=True, slots=True)
class View:
    """One system. distilled: "now" (in this run), "full" (as shipped), or "" where that is not said.

    chains: all its chains; drawn: those of samples that every problem has (`complete` of them), which estimates over
    samples are made from, because the chains that a deadline spares are the short ones.
    """

    record: SystemRecord
    label: str
    distilled: str
    colour: str
    dashed: bool
    rows: tuple[Row, ...]
    chains: Chains
    drawn: Chains
    complete: int

    @property
    def name(self) -> str:
        """Its name in the sample log."""
        return self.record.name

    @property
    def family(self) -> str:
        """One of "teacher", "hybrid", "pure"."""
        return self.record.family

    @property
    def is_teacher(self) -> bool:
        """Whether it is made of attention layers only."""
        return self.record.family == "teacher"


def build_views(results: Mapping[str, Any], rows: Sequence[Row]) -> list[View]:
    """One view per system of `results["eval"]`, in that order.

    Errors: InputError where the results lack what a report needs, or the log holds other systems or problems.
    """
    records = _records(results)
    problems = [str(problem["id"]) for problem in results["eval"]["problems"]]
    known, given = set(problems), {record.name for record in records}
    if stray := next((row for row in rows if row.problem not in known or row.system not in given), None):
        raise InputError(
            f"the sample log has problem {stray.problem!r} by {stray.system!r}, of which the results do not speak",
            remedy="draw the report from the results.json that belongs to this log",
        )
    said: Mapping[str, Any] = results.get("systems") or {}
    spare, used = iter(_SPARE * (1 + len(records))), set[str]()
    views = []
    for record in records:
        about = said.get(record.name) or {}
        distilled = str(about.get("distilled") or "")
        if distilled not in ("", "now", "full"):
            raise InputError(
                f"{record.name!r} is distilled {distilled!r}", remedy='write "now", "full", or leave it out'
            )
        colour = _COLOURS.get((record.family, distilled if distilled == "now" else ""), "")
        if not colour or colour in used:
            colour = next(spare)
        used.add(colour)
        mine = tuple(row for row in rows if row.system == record.name)
        whole = [row for row in mine if row.sample < record.complete_samples]
        if len(whole) < (wanted := record.complete_samples * len(problems)):
            raise InputError(
                f"the sample log has {len(whole):,} of the {wanted:,} chains counted for {record.name!r}",
                remedy="put back the whole samples.jsonl of this run, or run the evaluation again",
            )
        views.append(
            View(
                record=record,
                label=str(about.get("label") or record.name),
                distilled=distilled,
                colour=colour,
                dashed=distilled == "now",
                rows=mine,
                chains=_chains(mine, problems),
                drawn=_chains(whole, problems),
                complete=record.complete_samples,
            )
        )
    return views


def problem_list(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The problems of the evaluation as dicts with id, question, answer, level, subject."""
    return [dict(problem) for problem in results["eval"]["problems"]]


def _records(results: Mapping[str, Any]) -> list[SystemRecord]:
    wanted = [field.name for field in fields(SystemRecord)]
    try:
        found = [
            SystemRecord(**{name: each[name] for name in wanted if name in each}) for each in results["eval"]["systems"]
        ]
        if not found or not results["eval"]["problems"]:
            raise KeyError("systems")
    except (KeyError, TypeError) as missing:
        raise InputError(
            f"the results lack {missing}", remedy='put the content of eval.json under "eval", or run thinkfast eval'
        ) from missing
    return found


def _chains(rows: Sequence[Row], problems: Sequence[str]) -> Chains:
    return Chains.build(
        [row.problem for row in rows],
        [row.key for row in rows],
        [row.correct for row in rows],
        [row.seconds for row in rows],
        names=problems,
        values={
            "certainty": [row.certainty for row in rows],
            "logprob": [None if row.logprob is None else row.logprob / max(row.tokens, 1) for row in rows],
            "score": [row.score for row in rows],
        },
    )
