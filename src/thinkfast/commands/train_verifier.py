"""`thinkfast train-verifier`: a head on a model's own hidden states that tells right chains from wrong ones.

Usage: ``thinkfast train-verifier recipes/tiny-verifier.yaml --out runs/verifier``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ORDER = 47
EXAMPLES = """
thinkfast eval -m tiny --problems tiny_val --limit 400 unit=16 -n 32 --out runs/val-tiny
thinkfast train-verifier recipes/tiny-verifier.yaml                          # a minute on two cores
thinkfast train-verifier recipes/tiny-verifier.yaml model=tiny-hybrid log=runs/val-hybrid --out runs/v
thinkfast solve "…" --verifier runs/verifier/tiny-verifier --voter weighted  # and its use
"""


def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default runs/verifier/<name of the recipe>.")] = None,
) -> None:
    """Train a verifier on the checked chains of a sample log of problems for development."""
    from thinkfast.config import load_config
    from thinkfast.report.verify import VerifierRecipe, train_verifier

    config = load_config(VerifierRecipe, recipe, changes or [])
    train_verifier(config, out or Path("runs") / "verifier" / recipe.stem)
