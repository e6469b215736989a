"""`thinkfast models`: the embedded models, and what else a model name may be.

Usage: ``thinkfast models``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinkfast.models.spec import ModelSpec

ORDER = 70
EXAMPLES = """
thinkfast models                                   # names, sizes, folders
thinkfast solve "…" --model tiny                   # an embedded model by name
thinkfast solve "…" --model runs/hybrid/model      # a checkpoint by its folder
"""


def run() -> None:
    """List the models that come with thinkfast, and say what a model name may be."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from thinkfast.errors import ModelError
    from thinkfast.models.loading import ASSETS, EMBEDDED, read_spec

    # Wider than any line: a path that is folded or cut cannot be copied.
    console = Console(highlight=False, width=1000)
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in ("name", "family", "layers", "parameters", "size", "path"):
        table.add_column(column, justify="right" if column in ("parameters", "size") else "left", no_wrap=True)
    for name in EMBEDDED:
        folder = ASSETS / name
        try:
            spec = read_spec(folder)
        except ModelError:
            spec = None
        size = weight_bytes(folder)
        if spec is None or not size:
            state = "incomplete" if folder.is_dir() else "absent"
            table.add_row(
                Text(name, style="dim"), Text(state, style="yellow"), "", "", "", Text(str(folder), style="dim")
            )
            continue
        parameters = f"{spec.n_params / 1e6:.2f} M"
        table.add_row(
            Text(name, style="bold"),
            family(spec),
            layers(spec),
            parameters,
            f"{size / 2**20:.1f} MiB",
            Text(str(folder)),
        )
    console.print(table)
    console.print(
        "\nA model name is one of these, or a folder with a stock Llama or GraniteMoeHybrid checkpoint:"
        "\nconfig.json, model.safetensors, tokenizer.json. `thinkfast distill` leaves one in OUT/model.",
        markup=False,
    )


def family(spec: ModelSpec) -> str:
    """What a model is among ours."""
    if not spec.is_student:
        return "teacher"
    return "hybrid student" if spec.n_attention else "pure student"


def layers(spec: ModelSpec) -> str:
    """How many layers of which kind."""
    kinds = ((spec.n_attention, "attention"), (spec.n_layers - spec.n_attention, "mamba"))
    return " + ".join(f"{count} {kind}" for count, kind in kinds if count)


def weight_bytes(folder: Path) -> int:
    """Bytes of a folder's weights, 0 without any."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
