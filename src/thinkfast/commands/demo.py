"""`thinkfast demo`: the whole loop on this machine, ending in a report to open.

Usage: ``thinkfast demo --quick``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

ORDER = 10
RESUMES = "the last stage's checkpoint, or unit of samples, that it has kept"
EXAMPLES = """
thinkfast demo                       # 5.5 to 6.5 minutes on two cores; open runs/demo/report.html
thinkfast demo --quick               # the same stages in about 75 seconds; the students learn little
thinkfast demo --out /tmp/demo       # another folder; interrupted or killed, the same command goes on
"""


def run(
    quick: Annotated[bool, typer.Option("--quick", help="All stages, for a fraction of the tokens.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for everything; default runs/demo.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds for each system to answer all problems.")] = None,
    n: Annotated[int | None, typer.Option("-n", help="Most samples of each problem.")] = None,
    problems: Annotated[int | None, typer.Option(help="How many test problems.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of distillation and sampling.")] = 0,
) -> None:
    """Distil two students from the embedded teacher and race all of them against the clock. Works offline."""
    from rich.console import Console

    from thinkfast.demo import QUICK, DemoConfig, run_demo

    base = QUICK if quick else DemoConfig()
    config = replace(
        base,
        seconds=base.seconds if seconds is None else seconds,
        n=base.n if n is None else n,
        problems=base.problems if problems is None else problems,
        seed=seed,
    )
    folder = out or Path("runs/demo-quick" if quick else "runs/demo")
    command = "thinkfast demo" + (" --quick" if quick else "") + f" --out {folder}"
    run_demo(config, folder, Console(highlight=False, soft_wrap=True), command)
