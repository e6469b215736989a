"""The figure of docs/engine-gpu.md, from results/gpu-engine.json: tokens per second of every model and vLLM's, by cell.

python benchmarks/plot_gpu.py            # writes docs/engine-gpu.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from draw_docs import ROOT, VLLM, of_vllm, plain, result, teaches

from thinkfast.files import atomic_write
from thinkfast.report.canvas import INK, heading, panels, theme, to_svg

CELLS = [(64, 128, 512), (256, 128, 1024), (512, 128, 512), (512, 256, 2048), (512, 256, 4096)]
BASE = "llama-3.2-1b"
KINDS = ("hybrid4-d64", "hybrid4-d16", "hybrid2-d64", "hybrid2-d16", "pure-d64", "pure-d16")
ORDER = [BASE, *(f"{BASE}/{kind}" for kind in KINDS)]
COLOURS = {"teacher": "#5b6573", "hybrid4": "#d08c2c", "hybrid2": "#e3b465", "pure": "#2f7f79"}


def label(model: str) -> str:
    """What the figure calls it."""
    return "teacher" if teaches(model) else model.removeprefix(f"{BASE}/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "engine-gpu.svg")
    out = parser.parse_args().out
    found = result("gpu-engine")
    ours = plain("gpu-engine")
    theirs = of_vllm([*found["vllm"], *found["vllm_elsewhere"]])
    with theme():
        figure, axes = panels(1, len(CELLS), (13, 3.6))
        for column, (axis, cell) in enumerate(zip(axes, CELLS, strict=True)):
            heading(axis, f"{cell[0]} x {cell[2]:,} tokens", f"prompts of {cell[1]}")
            for place, model in enumerate(ORDER):
                if (one := ours.get((model, *cell))) is None:
                    continue
                speed = one["tok_s"]
                pale = model.endswith("d64") and not teaches(model)
                colour = COLOURS[label(model).split("-")[0]]
                axis.barh(-place, speed / 1e3, height=0.72, color=colour, alpha=0.55 if pale else 1.0)
                axis.text(speed / 1e3 + 2, -place, f"{speed / 1e3:.0f}", va="center", fontsize=9.5, color=INK)
                if other := theirs.get((VLLM.get(model, model), *cell)):
                    axis.plot([other / 1e3] * 2, [-place - 0.36, -place + 0.36], color=INK, lw=2)
            axis.set_xlim(0, 185)
            axis.set_yticks(
                [-place for place in range(len(ORDER))], [label(model) if not column else "" for model in ORDER]
            )
            axis.grid(False)
            axis.set_xlabel("thousand tokens/s")
        svg = to_svg(figure)
    atomic_write(out, svg)
    print(out)


if __name__ == "__main__":
    main()
