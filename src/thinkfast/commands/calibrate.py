"""`thinkfast calibrate`: how sure a vote may be, learned from a sample log of problems for development.

Usage: ``thinkfast calibrate runs/val --model tiny``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ORDER = 46
EXAMPLES = """
thinkfast eval -m runs/pure/model --problems tiny_val --limit 400 -n 32 --out runs/val
thinkfast calibrate runs/val                                     # writes calibration.json beside the weights
thinkfast calibrate runs/val --system pure --out here.json       # of one of several systems, to a file
"""


def run(
    run_dir: Annotated[Path, typer.Argument(help="Folder of an evaluation on a development set.", show_default=False)],
    system: Annotated[str | None, typer.Option(help="Of several systems, which.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default: beside the model's weights.")] = None,
) -> None:
    """Fit the confidence that `thinkfast solve` shows: how often a vote of that share and size was right."""
    from thinkfast.errors import InputError
    from thinkfast.judge.confidence import FILE
    from thinkfast.models.loading import find_model
    from thinkfast.report.calibrate import calibrate
    from thinkfast.report.results import load_results
    from thinkfast.report.samples import SAMPLES, read_rows

    evaluation = load_results(run_dir)["eval"]
    systems = {each["name"]: each["model"] for each in evaluation["systems"]}
    if system is None and len(systems) > 1:
        raise InputError(f"{run_dir} has {', '.join(systems)}", remedy=f"say which: --system {next(iter(systems))}")
    name = system or next(iter(systems))
    if name not in systems:
        raise InputError(f"{run_dir} has no system {name!r}", remedy=f"use one of {', '.join(systems)}")
    rows = [row for row in read_rows(run_dir / SAMPLES) if row.system == name]
    found = calibrate(rows, str(evaluation["config"]["problems"]))
    path = out or find_model(systems[name]) / FILE
    found.save(path)
    print(f"{path}: fitted on {found.votes} votes of {found.problems} problems of {found.fitted_on}")
