"""More tables of an evaluation: by level and subject, by voter, live beside replay.

Shapes: P problems.

Usage: ``tables = breakdown_tables(summary, results); voter_table(summary, ("majority", "certainty"))``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thinkfast.judge.voters import VOTERS, Voter
from thinkfast.report.intervals import bootstrap, paired
from thinkfast.report.live import Agreement
from thinkfast.report.metrics import coverage_at_k, majority_at_k, voter_at_k
from thinkfast.report.summary import SUBSETS, Summary
from thinkfast.report.tables import NONE, Cell, Line, Table
from thinkfast.report.views import View
from thinkfast.report.wording import percent, points

GROUPS = 16  # of levels or subjects; more make no table to read


def breakdown_tables(summary: Summary, results: Mapping[str, Any]) -> list[Table]:
    """Mean accuracy, maj@n and coverage of every system per level and per subject, where problems have them."""
    tables = []
    for field in ("level", "subject"):
        of = {str(p["id"]): p.get(field) for p in results["eval"]["problems"]}
        groups = sorted({value for value in of.values() if value is not None})
        if 1 < len(groups) <= GROUPS:
            tables.append(_breakdown(summary, field, of, groups))
    return tables


def _breakdown(summary: Summary, field: str, of: Mapping[str, Any], groups: Sequence[Any]) -> Table:
    views = [view for view in summary.views if view.complete]
    figures = {view.name: _figures(view) for view in views}
    lines = []
    for group in groups:
        count = sum(value == group for value in of.values())
        head = Cell(str(group), f"{count} problem{'s' * (count != 1)}")
        for view in views:
            inside = np.array([of[name] == group for name in view.drawn.names])
            shares = [_share(values[inside]) for values in figures[view.name]]
            lines.append(Line((head, Cell(view.label, colour=view.colour), Cell(str(view.complete)), *shares)))
            head = Cell("")
    columns = (field, "system", "n", "mean accuracy", "maj@n", "coverage@n")
    return Table(f"By {field}", columns, tuple(lines), "Intervals are 95 % bootstrap intervals over problems.")


def _figures(view: View) -> tuple[Any, Any, Any]:
    n = view.complete
    vote = majority_at_k(view.drawn, n, exact=SUBSETS, draws=SUBSETS)
    return coverage_at_k(view.drawn, 1), vote, coverage_at_k(view.drawn, n)


def _share(values: Any) -> Cell:
    if not len(values):
        return Cell(NONE, tone="muted")
    estimate = bootstrap(values)
    return Cell(percent(estimate.value), f"{100 * estimate.low:.0f}–{100 * estimate.high:.0f}")


def usable(view: View, voter: Voter) -> bool:
    """Whether the log holds what a voter reads for every chain of a system."""
    found = view.drawn.values.get(voter.reads) if voter.reads else None
    return not voter.reads or (found is not None and len(found) > 0 and bool(np.isfinite(found).all()))


def voter_table(summary: Summary, names: Sequence[str]) -> Table | None:
    """Accuracy at all samples by voter, paired against the majority; None where there is only one voter to show."""
    lines = []
    shown = [VOTERS[name] for name in dict.fromkeys(["majority", *names])]
    for view in summary.views:
        if not view.complete:
            continue
        plain = majority_at_k(view.drawn, view.complete)
        for voter in shown:
            if not usable(view, voter):
                continue
            values = plain if voter.name == "majority" else voter_at_k(view.drawn, view.complete, voter)
            estimate = bootstrap(values)
            interval = f"{100 * estimate.low:.0f}–{100 * estimate.high:.0f}"
            against = Cell(NONE, tone="muted")
            if voter.name != "majority" and len(values) > 1:
                duel = paired(values, plain)
                clear = duel.low > 0 or duel.high < 0
                tone = ("good" if duel.value > 0 else "bad") if clear else ""
                against = Cell(points(duel.value), f"{points(duel.low)} to {points(duel.high)}", tone)  # type: ignore[arg-type]
            lines.append(
                Line(
                    (
                        Cell(view.label, colour=view.colour),
                        Cell(voter.name),
                        Cell(str(view.complete)),
                        Cell(percent(estimate.value), interval),
                        against,
                    )
                )
            )
    columns = ("system", "voter", "n", "accuracy", "points over the majority")
    return Table("Voters", columns, tuple(lines)) if len(lines) > len(summary.views) else None


def agreement_table(agreements: Sequence[Agreement], labels: Mapping[str, str]) -> Table | None:
    """Live beside replay at every budget; None where nothing ran live."""
    lines = []
    for each in agreements:
        tone = "good" if each.agree else "bad"
        lines.append(
            Line(
                (
                    Cell(labels.get(each.system, each.system)),
                    Cell(f"{each.budget:g} s"),
                    Cell(percent(each.live.value), f"{100 * each.live.low:.0f}–{100 * each.live.high:.0f}"),
                    Cell(percent(each.replayed.value), f"{100 * each.replayed.low:.0f}–{100 * each.replayed.high:.0f}"),
                    Cell(points(each.difference), f"{points(each.low)} to {points(each.high)}"),
                    Cell("agree" if each.agree else "differ", tone=tone),  # type: ignore[arg-type]
                )
            )
        )
    columns = ("system", "seconds a problem", "live", "replayed", "live − replayed", "")
    note = "They agree where the interval of the paired difference holds zero."
    return Table("Live and replayed", columns, tuple(lines), note) if lines else None
