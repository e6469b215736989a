"""Draw the report: `report.html` (one file, no network), PNGs, `report.md` and `report.json`.

Why: figures are evidence only if anybody can draw them again, so all of it comes from the sample log and the results
JSON. What the results must hold is written in `RESULTS`.

Usage: ``report = render_report(results, Path("runs/demo")); report.html``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import thinkfast
from thinkfast.errors import InputError
from thinkfast.files import atomic_write
from thinkfast.report import browser, evidence, evidence_plots, tables
from thinkfast.report.canvas import as_element, save_png, theme, to_svg
from thinkfast.report.live import Agreement, agreement, load_times, read_live
from thinkfast.report.plots import against_samples, against_seconds, throughput
from thinkfast.report.replay import Recording, record
from thinkfast.report.samples import SAMPLES, Row, read_rows
from thinkfast.report.summary import Summary, summarise
from thinkfast.report.tables import Table
from thinkfast.report.training_plot import distillation
from thinkfast.report.views import problem_list
from thinkfast.report.wording import seconds_text

RESULTS = """
version        1
eval           the content of eval.json, as `report.evaluate` writes it (required)
samples        where the sample log lies, from the report's folder; "samples.jsonl" where not given
command        how the run was started, for the footer
notes          sentences to be shown under the headline
systems        {system: {"label": text shown, "distilled": "now" | "full"}}
distillation   {system: the content of a distillation's results.json: "gates", "losses", "seconds"}
bench          {"throughput": [{"system", "engine", "batch", "prompt_tokens", "new_tokens", "tokens_per_second"}],
                "break_even": [{"student", "teacher", "batch", "predicted_tokens", "measured_tokens"}],
                "ratios": [{"name", "value", "wanted"}]}
"""

MORE_FIGURES = ("tokens", "pareto", "calibration", "live_and_replay")
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True, slots=True)
class Report:
    """What was drawn: the page, the pictures, the Markdown tables, and the summary behind them."""

    html: Path
    pictures: tuple[Path, ...]
    markdown: Path
    summary: Summary


def render_report(results: Mapping[str, Any], out: Path) -> Report:
    """Draw everything into the folder `out`, where the sample log lies too.

    Errors: InputError where log and results are missing parts or do not belong together; OutputError where `out`
    cannot be written.
    """
    samples = out / str(results.get("samples") or SAMPLES)
    if not samples.is_file():
        raise InputError(f"there is no sample log {samples}", remedy="run thinkfast eval or demo into this folder")
    rows = read_rows(samples)
    summary = summarise(results, rows)
    lived = live_evidence(out, summary, rows)
    more = _more_tables(summary, results, lived)
    pictures, svgs = _figures(summary, results, out, lived)
    html, markdown = out / "report.html", out / "report.md"
    atomic_write(html, _page(summary, results, svgs, more))
    atomic_write(markdown, _markdown(summary, results, more))
    atomic_write(out / "report.json", json.dumps(as_json(summary, lived), indent=1) + "\n")
    return Report(html, pictures, markdown, summary)


@dataclass(frozen=True, slots=True)
class Lived:
    """What ran live, and the recordings that replay it, by system."""

    agreements: tuple[Agreement, ...]
    logs: Mapping[str, Recording]


def live_evidence(out: Path, summary: Summary, rows: Sequence[Row]) -> Lived:
    """Live against replay for every system of the folder that ran live. Errors: InputError where it is not finished."""
    answers = read_live(out)
    times, prompts = load_times(out)
    logs, found = {}, []
    for view in summary.views:
        if view.name in times and any(row.system == view.name for row in answers) and view.complete:
            mine = [row for row in rows if row.sample < view.complete]
            logs[view.name] = record(mine, view.name, view.drawn.names, prompts, *times[view.name])
            found += agreement(answers, logs[view.name])
    return Lived(tuple(found), logs)


def _more_tables(summary: Summary, results: Mapping[str, Any], lived: Lived) -> list[Table]:
    voters = (results["eval"].get("config") or {}).get("voters") or ()
    labels = {view.name: view.label for view in summary.views}
    shown = [evidence.agreement_table(lived.agreements, labels), evidence.voter_table(summary, voters)]
    return [table for table in shown if table is not None] + evidence.breakdown_tables(summary, results)


def _figures(
    summary: Summary, results: Mapping[str, Any], out: Path, lived: Lived
) -> tuple[tuple[Path, ...], dict[str, Any]]:
    from markupsafe import Markup

    with theme():
        drawn = {
            "coverage_vs_seconds": against_seconds(summary, "coverage"),
            "majority_vs_seconds": against_seconds(summary, "majority"),
            "samples": against_samples(summary),
            "tokens": evidence_plots.against_tokens(summary),
            "pareto": evidence_plots.pareto(summary) if len(summary.views) > 1 else None,
            "calibration": evidence_plots.calibration(summary.views),
            "live_and_replay": evidence_plots.live_and_replay(lived.agreements, lived.logs, summary.views),
            "throughput": throughput(summary, results.get("bench")),
            "distillation": distillation(results.get("distillation") or {}, summary.views),
        }
        pictures, svgs = [], {}
        for name, figure in drawn.items():
            if figure is not None:
                pictures.append(out / f"{name}.png")
                save_png(figure, pictures[-1])
                svg = to_svg(figure)
                svgs[name] = Markup(as_element(svg, name))
                atomic_write(out / f"{name}.svg", svg)
    return tuple(pictures), svgs


def _page(summary: Summary, results: Mapping[str, Any], svgs: Mapping[str, Any], more: Sequence[Table]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    css, js = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    race = _race(summary)
    figures = {name: svgs.get(name) for name in ("coverage_vs_seconds", "majority_vs_seconds", "samples")}
    figures |= {name: svgs.get(name) for name in ("throughput", "distillation", *MORE_FIGURES)}
    return environment.get_template("report.html.jinja").render(
        title=f"thinkfast: {summary.headline.title}",
        css=Markup(css),
        js=Markup(js),
        summary=summary,
        students=_students(summary),
        notes=[str(note) for note in [*(results.get("notes") or []), results["eval"].get("note")] if note],
        race=race,
        race_end=seconds_text(race["end"]) if race else "",
        figures=figures,
        wide_throughput=bool((results.get("bench") or {}).get("throughput")),
        winners=tables.winner_table(summary),
        final=tables.final_table(summary),
        budgets=tables.budget_table(summary) if summary.budgets else None,
        comparison=tables.comparison_table(summary, results),
        more=more,
        bench=tables.bench_table(results),
        gates=tables.gates_table(results),
        browser=browser.choose(summary.views, problem_list(results)),
        threads=int(results["eval"].get("threads") or 1),
        unit=(results["eval"].get("config") or {}).get("unit"),
        facts=_facts(results),
        version=thinkfast.__version__,
        samples_name=str(results.get("samples") or SAMPLES),
    )


def _students(summary: Summary) -> list[dict[str, Any]]:
    teacher = next((view.label for view in summary.views if view.is_teacher), "")
    cards = []
    for view in summary.views:
        said = [point for point in summary.headline.points if point.system == view.name]
        if said:
            cards.append({"label": view.label, "colour": view.colour, "teacher": teacher, "points": said})
    return cards


def _race(summary: Summary) -> dict[str, Any] | None:
    """The curves as the page's slider wants them; None where there is nothing to race."""
    if not summary.budgets:
        return None
    start = min(float(curve.seconds[0]) for curve in summary.curves["coverage"].values())
    end = summary.budgets[-1]
    systems = []
    for view in summary.views:
        entry: dict[str, Any] = {"label": view.label, "colour": view.colour}
        for metric, curves in summary.curves.items():
            curve = curves[view.name]
            entry[metric] = {
                "t": [float(f"{x:.8g}") for x in curve.seconds],
                "v": [round(float(x), 4) for x in curve.value],
                "lo": [round(float(x), 4) for x in curve.low],
                "hi": [round(float(x), 4) for x in curve.high],
            }
        systems.append(entry)
    return {"start": min(start, end), "end": end, "systems": systems}


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The provenance footer: what ran, where, with which versions."""
    run = results["eval"]
    provenance: Mapping[str, Any] = results.get("provenance") or run.get("provenance") or {}
    machine: Mapping[str, Any] = provenance.get("machine") or {}
    versions: Mapping[str, Any] = provenance.get("versions") or {}
    parts = [str(machine.get("cpu") or ""), f"{machine.get('cores')} cores", f"{machine.get('memory_gib')} GiB"]
    parts += [str(machine[key]) for key in ("accelerator", "os") if machine.get(key)]
    config = {key: value for key, value in (run.get("config") or {}).items() if key != "models" and value is not None}
    models = ", ".join(f"{each['name']} = {each['model']} ({each['sha'][:12]})" for each in run["systems"])
    facts = [
        ("command", str(results.get("command") or "")),
        ("models", models),
        ("settings", ", ".join(f"{key} {value}" for key, value in config.items())),
        ("machine", ", ".join(part for part in parts if part and "None" not in part)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
        ("commit", str(provenance.get("commit") or "")),
        ("seed", str(provenance.get("seed"))),
    ]
    return [(key, value) for key, value in facts if value and value != "None"]


def _markdown(summary: Summary, results: Mapping[str, Any], more: Sequence[Table]) -> str:
    shown: Sequence[Table | None] = (
        tables.final_table(summary),
        tables.budget_table(summary) if summary.budgets else None,
        tables.winner_table(summary) if len(summary.views) > 1 and summary.budgets else None,
        tables.comparison_table(summary, results),
        *more,
        tables.bench_table(results),
        tables.gates_table(results),
    )
    parts = [f"# {summary.headline.title}", summary.headline.basis]
    parts += [f"**{summary.headline.warning}**"] if summary.headline.warning else []
    parts += [f"- {point.text} ({point.figures})" for point in summary.headline.points]
    for table in shown:
        if table is not None:
            parts.append(f"## {table.title}\n\n{markdown_table(table)}\n\n{table.note}".rstrip())
    return "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


def markdown_table(table: Table) -> str:
    """A table as GitHub-flavoured Markdown."""
    lines = [[str(cell).replace("|", "\\|") for cell in line.cells] for line in table.lines]
    head = [column or " " for column in table.columns]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))


def as_json(summary: Summary, lived: Lived) -> dict[str, Any]:
    """The figures behind the page as plain data."""
    return {
        "live_and_replay": [asdict(each) | {"agree": each.agree} for each in lived.agreements],
        "headline": summary.headline.title,
        "points": [f"{point.text} ({point.figures})" for point in summary.headline.points],
        "warning": summary.headline.warning,
        "problems": summary.problems,
        "budgets": list(summary.budgets),
        "systems": {
            row.view.name: {
                "tokens_per_second": row.view.record.tokens_per_second,
                "samples": row.samples,
                "mean_accuracy": row.mean.value if row.mean else None,
                "majority": row.majority.value if row.majority else None,
                "coverage": row.coverage.value if row.coverage else None,
                "at_budgets": {
                    metric: {
                        "value": scores[row.view.name].value.tolist(),
                        "low": scores[row.view.name].low.tolist(),
                        "high": scores[row.view.name].high.tolist(),
                    }
                    for metric, scores in summary.scores.items()
                },
            }
            for row in summary.table
        },
        "winners": [
            {
                "seconds": seconds,
                **{
                    metric: None
                    if duel is None
                    else {
                        "leader": duel.a,
                        "runner_up": duel.b,
                        "lead": duel.lead,
                        "low": duel.low,
                        "high": duel.high,
                        "clear": duel.clear,
                    }
                    for metric, duel in cells.items()
                },
            }
            for seconds, cells in zip(summary.budgets, summary.winners, strict=True)
        ],
    }
