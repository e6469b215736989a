"""What `thinkfast bench` shows in the terminal: speeds beside the roofline, ratios, break-even.

Usage: ``print_bench(bench(config), console)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from thinkfast.commands._evalview import terminal_table
from thinkfast.report.tables import bench_table

SPEED_COLUMNS = (
    *("model", "engine", "batch", "tokens", "tokens/s", "ms/step", "GB/step", "GFLOP/step", "bound", "share"),
    *("first", "MiB", "planned", "mJ/token"),
)
LEGEND = (
    "tokens: of a prompt + new ones. GB, GFLOP: what a step has to move and to compute. bound: the least ms a step "
    "takes at the machine's rates; share: bound / (ms/step). first: until every chain has its first token. "
    "MiB: most that was held; planned: most that may be. mJ/token: energy, where the machine tells it."
)
PIPE_WIDTH = 160  # a file or a pipe has no width of its own, and a wrapped table cannot be read


def print_bench(found: Mapping[str, Any], console: Console) -> None:
    """Tables of a bench's data, and the circumstances of the measurement."""
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
    console.print(_speeds([*found["throughput"], *found["one_prompt"]]))
    console.print(Text(LEGEND, style="dim"))
    if (ratios := bench_table({"bench": found})) is not None:
        console.print(terminal_table(ratios))
    if found["step_curves"]:
        console.print(_curves(found["step_curves"], found["break_even"]))
    rates = ", ".join(f"{rate / 1e9:.1f} GB/s at {size / 2**20:.0f} MiB" for size, rate in found["roofline"]["rates"])
    machine = f"{found['roofline']['name']}, {found['threads']} threads: {found['roofline']['peak'] / 1e9:,.0f} GFLOP/s"
    before, after = (f"{found['load'][when][0]:.1f}" for when in ("before", "after"))
    console.print(Text(f"{machine}, {rates}; load {before} before, {after} after", style="dim"))
    for note in found["notes"]:
        console.print(Text(f"note: {note}", style="dim"))


def _speeds(cells: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("Tokens per second, forced length, temperature 1", SPEED_COLUMNS, left=2)
    for cell in cells:
        table.add_row(
            f"{cell['system']}{', states in ' + cell['state'] if cell['state'] else ''}",
            f"{cell['engine']}{', torch' if cell['step'] == 'torch' else ''}",
            str(cell["batch"]),
            f"{cell['prompt_tokens']}{' shared' if cell['shared_prompt'] else ''}+{cell['new_tokens']}",
            f"{cell['tokens_per_second']:,.0f}",
            f"{cell['ms_per_step']:.2f}",
            *(f"{cell['cost']['all'][name] / 1e9:.3g}" for name in ("bytes", "flops")),
            f"{cell['bound_ms_per_step']:.2f}",
            "–" if cell["bound_share"] is None else f"{cell['bound_share']:.0%}",
            f"{1e3 * cell['first_token_seconds']:.0f} ms",
            *("–" if cell[name] is None else f"{cell[name] / 2**20:,.0f}" for name in ("peak_bytes", "plan_bytes")),
            "–" if cell["joules_per_token"] is None else f"{1e3 * cell['joules_per_token']:.1f}",
        )
    return table


def _curves(curves: Mapping[str, Mapping[str, Any]], crossings: Sequence[Mapping[str, Any]]) -> Table:
    """Step time at each measured context, and the contexts at which a student's step gets cheaper."""
    contexts = next(iter(curves.values()))["context"]
    columns = ["ms/step at context", *(f"{context:.0f}" for context in contexts), "cheaper from", "predicted"]
    table = _table("Step time against context", columns, left=1)
    at = {each["student"]: each for each in crossings}
    for name, curve in curves.items():
        values = (at.get(name, {}).get(f"{how}_context") for how in ("measured", "predicted"))
        found = [_context(value, name in at, contexts[0]) for value in values]
        table.add_row(name, *(f"{1e3 * seconds:.2f}" for seconds in curve["seconds"]), *found)
    return table


def _context(value: float | None, student: bool, first: float) -> str:
    """Where a student gets cheaper; what is so at the ``first`` context measured may have been so before."""
    if not student:
        return ""
    return "never" if value is None else f"{'' if value > first else '≤ '}{value:.0f}"


def _table(title: str, columns: Sequence[str], left: int) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at < left else "right", header_style="dim", no_wrap=True)
    return table
