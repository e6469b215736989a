"""`thinkfast report`: draw a run's report again, from its sample log and results alone.

Usage: ``thinkfast report runs/demo``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ORDER = 50
EXAMPLES = """
thinkfast report runs/demo     # report.html, PNGs, report.md and report.json of a demo
thinkfast report runs/eval     # the same of an evaluation
"""


def run(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a demo or an evaluation.", show_default=False)],
) -> None:
    """Draw curves, tables and page again from samples.jsonl and the results JSON of a run."""
    from thinkfast.commands._evalview import print_result
    from thinkfast.report.render import render_report
    from thinkfast.report.results import load_results

    results = load_results(run_dir)
    print_result(results, run_dir, render_report(results, run_dir))
