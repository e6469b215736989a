"""The report's tables as text cells, shared by the page, the Markdown file and the terminal.

Usage: ``table = final_table(summary); table.columns, table.rows``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from thinkfast.report.duels import METRICS, Duel
from thinkfast.report.intervals import Estimate
from thinkfast.report.summary import Summary, TableRow
from thinkfast.report.views import View
from thinkfast.report.wording import percent, points, seconds_text

Tone = Literal["", "best", "good", "bad", "muted"]
FAMILIES = {"teacher": "Transformer", "hybrid": "hybrid SSM", "pure": "pure SSM"}
NONE = "–"


@dataclass(frozen=True, slots=True)
class Cell:
    """Text, a smaller second part (an interval, a remark), how it is to be coloured, and a system's dot."""

    text: str
    small: str = ""
    tone: Tone = ""
    colour: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.small}".strip()


@dataclass(frozen=True, slots=True)
class Line:
    """A row."""

    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Named columns and lines of as many cells."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    note: str = ""


def final_table(summary: Summary) -> Table:
    """One line per system: size, speed, accuracy per sample, and over all its samples."""
    best = {name: _best(summary, name) for name in ("mean", "majority", "coverage")}
    fastest = max(row.view.record.tokens_per_second for row in summary.table)
    lines = []
    for row in summary.table:
        view, record = row.view, row.view.record
        speed = record.tokens_per_second
        lines.append(
            Line(
                (
                    Cell(view.label, _kind(view), colour=view.colour),
                    Cell(f"{record.parameters / 1e6:.2f} M"),
                    Cell(f"{speed:,.0f}", tone="best" if speed == fastest and len(summary.table) > 1 else ""),
                    _estimate(row.mean, best["mean"]),
                    Cell(str(row.samples) if row.samples else NONE, f"+ {_rest(row)}" if _rest(row) else ""),
                    _estimate(row.majority, best["majority"]),
                    _estimate(row.coverage, best["coverage"]),
                    Cell(seconds_text(row.seconds) if row.seconds is not None else NONE),
                    Cell(f"{row.mean_tokens:.0f}"),
                )
            )
        )
    note = "n: samples that every problem has; + chains of samples that the budget ended before every problem had one."
    if unknown := max(row.unknown_share for row in summary.table):
        note += f" Up to {percent(unknown)} of the chains have no verdict; they count as wrong."
    columns = ("system", "parameters", "tokens/s", "mean accuracy", "n", "maj@n", "coverage@n", "time for n", "tokens")
    return Table("All systems", columns, tuple(lines), note)


def budget_table(summary: Summary) -> Table:
    """Coverage and majority accuracy of every system at a few equal budgets."""
    at = summary.columns
    columns = [f"{name} in {seconds_text(summary.budgets[i])}" for i in at for name in ("coverage", "majority")]
    lines = []
    for view in summary.views:
        cells = []
        for i in at:
            for metric in METRICS:
                score = summary.scores[metric][view.name]
                top = max(float(each.value[i]) for each in summary.scores[metric].values())
                least = min(float(each.value[i]) for each in summary.scores[metric].values())
                best = float(score.value[i]) == top > least
                cells.append(Cell(percent(float(score.value[i])), tone="best" if best else ""))
        lines.append(Line((Cell(view.label, _kind(view), colour=view.colour), *cells)))
    return Table("At equal seconds", ("system", *columns), tuple(lines))


def winner_table(summary: Summary) -> Table:
    """Who leads at each budget, by how much, and whether that is more than noise."""
    labels = {view.name: view for view in summary.views}
    lines = []
    for seconds, cells in zip(summary.budgets, summary.winners, strict=True):
        each = seconds / summary.problems
        row = [Cell(seconds_text(seconds), f"{seconds_text(each)} each")]
        for metric in METRICS:
            row += _duel(cells[metric], labels)
        lines.append(Line(tuple(row)))
    columns = ("seconds", "leads in coverage", "lead, 95 % interval", "leads in majority", "lead, 95 % interval")
    note = "Paired over problems against the runner-up; a lead is clear where the bootstrap interval excludes zero."
    return Table("Who leads when", columns, tuple(lines), note)


def comparison_table(summary: Summary, results: Mapping[str, Any]) -> Table | None:
    """Students distilled just now beside those distilled fully; None unless there are both."""
    kinds = {view.distilled for view in summary.views}
    if not {"now", "full"} <= kinds or not summary.budgets:
        return None
    teacher = next((row for row in summary.table if row.view.is_teacher), None)
    lines = []
    order = {"": 0, "full": 1, "now": 2}
    shown = [row for row in summary.table if row.view.distilled or row is teacher]
    for row in sorted(
        shown, key=lambda row: (row.view.family != "teacher", row.view.family, order[row.view.distilled])
    ):
        view = row.view
        seconds = ((results.get("distillation") or {}).get(view.name) or {}).get("seconds")
        ratio = (
            row.mean.value / teacher.mean.value if row.mean and teacher and teacher.mean and teacher.mean.value else 0
        )
        kind = {"now": "just now", "full": "fully", "": "teacher" if row is teacher else ""}[view.distilled]
        scores = [float(summary.scores[metric][view.name].value[-1]) for metric in METRICS]
        lines.append(
            Line(
                (
                    Cell(view.label, FAMILIES.get(view.family, view.family), colour=view.colour),
                    Cell(kind),
                    Cell(seconds_text(seconds) if seconds else NONE),
                    Cell(percent(row.mean.value) if row.mean else NONE),
                    Cell(percent(ratio) if ratio and row is not teacher else NONE),
                    *(Cell(percent(score)) for score in scores),
                )
            )
        )
    end = seconds_text(summary.budgets[-1])
    columns = ("system", "distilled", "training time", "mean accuracy", "of the teacher's", f"coverage in {end}")
    return Table("Distilled just now, distilled fully", (*columns, f"majority in {end}"), tuple(lines))


def gates_table(results: Mapping[str, Any]) -> Table | None:
    """The gate of every stage of every distillation; None where nothing was distilled."""
    lines = []
    for name, run in (results.get("distillation") or {}).items():
        for gate in run.get("gates") or []:
            value, bound, higher = float(gate["value"]), gate.get("bound"), gate.get("higher_is_better", True)
            passed = bound is None or (value >= bound if higher else value <= bound)
            wanted = "no gate" if bound is None else f"{'≥' if higher else '≤'} {bound:g}"
            verdict = Cell(NONE, tone="muted") if bound is None else Cell("passed" if passed else "failed")
            tone: Tone = "muted" if bound is None else "good" if passed else "bad"
            cells = (Cell(str(name)), Cell(str(gate["stage"])), Cell(str(gate["figure"])), Cell(f"{value:.4g}"))
            lines.append(Line((*cells, Cell(wanted), Cell(verdict.text, tone=tone))))
    columns = ("student", "stage", "held-out figure", "value", "gate", "")
    return Table("Gates", columns, tuple(lines)) if lines else None


def bench_table(results: Mapping[str, Any]) -> Table | None:
    """Ratios and break-even points of the bench; None where it was not run."""
    bench: Mapping[str, Any] = results.get("bench") or {}
    lines = []
    for ratio in bench.get("ratios") or []:
        wanted = ratio.get("wanted")
        met = wanted is None or ratio["value"] >= wanted
        text = NONE if wanted is None else f"{wanted:g}x"
        lines.append(
            Line((Cell(ratio["name"]), Cell(f"{ratio['value']:.2f}x", tone="good" if met else "bad"), Cell(text)))
        )
    for each in bench.get("break_even") or []:
        name = f"{each['student']} overtakes {each['teacher']}, batch {each['batch']}"
        measured, predicted = (_tokens(each.get(f"{key}_tokens")) for key in ("measured", "predicted"))
        lines.append(Line((Cell(name), Cell(measured), Cell(predicted))))
    return Table("Bench", ("", "measured", "wanted / predicted"), tuple(lines)) if lines else None


def _best(summary: Summary, name: str) -> float | None:
    """The highest of an estimate over the systems; None where they do not differ."""
    values = [getattr(row, name).value for row in summary.table if getattr(row, name) is not None]
    return max(values) if values and max(values) > min(values) else None


def _tokens(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f} tokens"


def _kind(view: View) -> str:
    kind = FAMILIES.get(view.family, view.family)
    return f"{kind}, just now" if view.distilled == "now" else kind


def _rest(row: TableRow) -> int:
    return len(row.view.rows) - len(row.view.drawn.seconds)


def _estimate(estimate: Estimate | None, best: float | None) -> Cell:
    if estimate is None:
        return Cell(NONE, tone="muted")
    interval = f"{100 * estimate.low:.0f}–{100 * estimate.high:.0f}"
    return Cell(percent(estimate.value), interval, "best" if estimate.value == best else "")


def _duel(duel: Duel | None, labels: Mapping[str, View]) -> list[Cell]:
    if duel is None:
        return [Cell(NONE, tone="muted"), Cell(NONE, tone="muted")]
    if duel.lead == 0:
        return [Cell("level", tone="muted"), Cell(percent(duel.a_value), tone="muted")]
    interval = "" if duel.low is None or duel.high is None else f"{points(duel.low)} to {points(duel.high)}"
    who = Cell(
        labels[duel.a].label, f"over {labels[duel.b].label}", "good" if duel.clear else "", labels[duel.a].colour
    )
    return [who, Cell(points(duel.lead), interval if duel.clear else f"{interval}, within noise")]
