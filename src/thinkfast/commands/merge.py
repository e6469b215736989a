"""`thinkfast merge`: evaluations of several machines as one.

Usage: ``thinkfast merge runs/a runs/b --out runs/all``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ORDER = 45
EXAMPLES = """
thinkfast eval -m tiny --limit 50 -n 16 seed=0 --out runs/a     # on one machine
thinkfast eval -m tiny --limit 50 -n 16 seed=1 --out runs/b     # on another
thinkfast merge runs/a runs/b --out runs/all                    # 32 samples of each problem, and their report
"""


def run(
    run_dirs: Annotated[list[Path], typer.Argument(help="Folders of evaluations.", show_default=False)],
    out: Annotated[Path, typer.Option(help="A new folder.")],
) -> None:
    """Join sample logs of the same problems: other seeds of the same systems, or other systems."""
    from thinkfast.commands._evalview import print_result
    from thinkfast.report.merge import merge_runs
    from thinkfast.report.render import render_report
    from thinkfast.report.results import load_results

    merge_runs(run_dirs, out)
    results = load_results(out)
    print_result(results, out, render_report(results, out))
