"""The model card: what an exported checkpoint is, how each program runs it, and the figures that say it is the same.

Why generated: a card written by hand drifts from the weights; every line here comes from the checkpoint, the parity
report, or the evaluation's own files.

Usage: ``write_card(folder, CardFacts("tiny-hybrid", "runs/hybrid/model", "bf16", loaded, report, None))``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import thinkfast
from thinkfast.files import atomic_write
from thinkfast.models.loading import Loaded
from thinkfast.provenance import provenance
from thinkfast.report import tables
from thinkfast.report.render import markdown_table
from thinkfast.report.results import load_results
from thinkfast.report.samples import SAMPLES, read_rows
from thinkfast.report.summary import Summary, summarise
from thinkfast.serve.parity.report import Check, ParityReport

TEMPLATES = Path(__file__).with_name("templates")
CARD = "README.md"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation's folder, its summary, and the digests of the weights it was made with."""

    folder: Path
    problems: str
    summary: Summary
    shas: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What the card says. name: of the export; source: where it came from; loaded: the exported model."""

    name: str
    source: str
    dtype: str
    loaded: Loaded
    parity: ParityReport | None
    evaluation: Evaluation | None


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation in ``folder``, as `thinkfast eval` or `demo` left it. Errors: InputError where there is none."""
    results = load_results(folder)
    rows = read_rows(folder / str(results.get("samples") or SAMPLES))
    run = results["eval"]
    shas = tuple(str(system["sha"]) for system in run["systems"])
    problems = str((run.get("config") or {}).get("problems") or "")
    return Evaluation(folder, problems, summarise(results, rows), shas)


def write_card(folder: Path, facts: CardFacts) -> Path:
    """Write README.md into ``folder``. Errors: OutputError."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    spec = facts.loaded.spec
    text = environment.get_template("card.md.jinja").render(
        name=facts.name,
        source=facts.source,
        dtype=facts.dtype,
        spec=spec,
        family="teacher" if not spec.is_student else "hybrid" if spec.n_attention else "pure",
        attention_layers=", ".join(str(i) for i, kind in enumerate(spec.layer_types) if kind == "attention"),
        state=_size(spec.state_bytes(2)),
        kv=_size(spec.kv_bytes_per_token(2)),
        sha=facts.loaded.sha,
        parity=facts.parity,
        parity_table=parity_table(facts.parity.checks) if facts.parity is not None else "",
        evaluation=_evaluation(facts.evaluation),
        version=thinkfast.__version__,
        commit=provenance()["commit"],
    )
    atomic_write(folder / CARD, text)
    return folder / CARD


def parity_table(checks: Sequence[Check]) -> str:
    """The checks as a Markdown table."""
    head = ("compared", "with", "worst", "bound", "", "on")
    rows = [
        (c.name, c.against, c.shown, c.limit if c.value is not None else "", c.status, c.detail.replace("|", "\\|"))
        for c in checks
    ]
    rule = ("---", "---", "---:", "---:", "---", "---")
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def _evaluation(evaluation: Evaluation | None) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    summary = evaluation.summary
    shown = [tables.final_table(summary)]
    if summary.budgets:
        shown.append(tables.budget_table(summary))
    return {
        "count": summary.problems,
        "problems": evaluation.problems,
        "tables": [{"title": table.title, "text": markdown_table(table), "note": table.note} for table in shown],
        "points": [f"{point.text} ({point.figures})" for point in summary.headline.points],
    }


def _size(count: int) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
