"""`thinkfast distill`: run a recipe, from teacher to stock checkpoint.

Usage: ``thinkfast distill recipes/tiny-hybrid.yaml --out runs/hybrid``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ORDER = 20
RESUMES = "its last checkpoint"
EXAMPLES = """
thinkfast distill recipes/tiny-hybrid.yaml --out runs/hybrid                  # all stages, resumable
thinkfast distill recipes/tiny-pure.yaml stages.2.tokens=5e6 --out runs/pure  # with a change
thinkfast distill recipes/tiny-teacher.yaml --out runs/teacher --device cuda  # a teacher from nothing
thinkfast distill recipes/tiny-pure.yaml --dry-run                            # show the plan and stop
"""


def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/<name of the recipe>.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe, print the plan, train nothing.")
    ] = False,
) -> None:
    """Distil a student from a teacher in stages, each with a gate; ends with a stock checkpoint in OUT/model.

    Interrupted or killed, the same command goes on where it was and ends with the same losses.
    """
    from rich.console import Console

    from thinkfast.commands._distillview import DistillView, print_plan
    from thinkfast.config import load_config
    from thinkfast.distill.recipe import Recipe
    from thinkfast.distill.run import check_recipe, run_recipe

    config = load_config(Recipe, recipe, changes or [])
    console = Console(highlight=False, soft_wrap=True)
    print_plan(config, console)
    if dry_run:
        check_recipe(config)
        return

    folder = out or Path("runs") / config.name
    with DistillView({config.name: config}, console) as view:
        result = run_recipe(
            config,
            folder,
            device=device,
            on_step=lambda event: view.step(config.name, event),
            on_gate=lambda gate: view.gate(config.name, gate),
            on_note=lambda text: view.note(config.name, text),
        )
    console.print(f"model: {result.model_dir}\nresults: {folder / 'results.json'}")
