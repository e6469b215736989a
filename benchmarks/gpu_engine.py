"""Our engine beside vLLM on one GPU in one run: tokens per second end to end, and the share of the bound.

Each part of the run is one invocation that adds its rows to --out, so that a machine lent for minutes can do it in
pieces; `--table FILE` prints what a file holds, and the ratios. Chains have random prompts and forced lengths; seconds
run from the prompts to the last chain. The bound is FACTS.md's (shared/tools/bound.py): 3.0e12 B/s and 790e12 FLOP/s
of one H100, everything in bf16.

Usage: ``python benchmarks/gpu_engine.py --ours llama-3.2-1b llama-3.2-1b/pure-d64 --cells 512,128,512 --out r.json``,
``PYTHONPATH=/tmp/vl … --vllm llama-1b --vllm-script vllm_bench.py …`` with what shared/tools/pack_vllm.py packs.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from thinkfast.models.loading import load_model
from thinkfast.provenance import provenance
from thinkfast.report.contestants import Ours
from thinkfast.report.roofline import ItemSizes, Machine, decode_step

H100 = Machine("H100 80GB", 790e12, ((1.0, 3.0e12),))
# vLLM's names of vllm_bench.py for ours.
SAME = {
    "llama-1b": "llama-3.2-1b",
    "pure-1b": "llama-3.2-1b/pure-d64",
    "hybrid-1b": "llama-3.2-1b/hybrid4-d64",
    "hybrid-1b-n16": "llama-3.2-1b/hybrid4-d16",
    "llama-3b": "llama-3.2-3b",
}
Cell = tuple[int, int, int]
Row = dict[str, Any]


def ours(system: str, cells: list[Cell], repeats: int) -> list[Row]:
    """Rows of one model in our engine, one process, one load."""
    device = torch.device("cuda")
    loaded = load_model(f"random:{system}", torch.bfloat16, device)
    rows = []
    for batch, prompt, new in cells:
        try:
            contestant = Ours(system, loaded, batch, prompt + new)
            prompts = torch.randint(1000, 100_000, (batch, prompt)).tolist()
            contestant.run(prompts[: min(8, batch)], 16)  # capture and compile
            runs = [contestant.run(prompts, new) for _ in range(repeats)]
        except Exception as error:  # noqa: BLE001 - a cell that fails is a row that says so
            rows.append({"system": system, "engine": "thinkfast", "cell": [batch, prompt, new], "error": str(error)})
            print(json.dumps(rows[-1]), flush=True)
            gc.collect()
            continue
        best = min(runs, key=lambda run: run.seconds)
        cost = decode_step(loaded.spec, batch, prompt + (new + 1) / 2, ItemSizes())
        bound = 1e3 * cost.seconds(H100)
        rows.append(
            {
                "system": system,
                "engine": "thinkfast",
                "cell": [batch, prompt, new],
                "tokens_per_second": best.tokens_per_second,
                "seconds": best.seconds,
                "prefill_seconds": best.prefill_seconds,
                "ms_per_step": best.ms_per_step,
                "bound_ms_per_step": bound,
                "bound_share": bound / best.ms_per_step if best.ms_per_step else None,
                "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
                "step": contestant.llm.step_path,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        del contestant
        gc.collect()
        torch.cuda.empty_cache()
    return rows


def vllm(name: str, cells: list[Cell], script: Path, seconds: float) -> list[Row]:
    """Rows of one model in vLLM, which runs in a process of its own (start-up takes a minute and is not counted)."""
    words = [",".join(map(str, cell)) for cell in cells]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(script), name, *words], stdout=subprocess.PIPE, text=True, timeout=seconds, check=False
    )
    rows = []
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            cell = [found["B"], found["P"], found["O"]]
            if tuple(cell) in cells:
                rows.append(
                    {
                        "system": SAME[name],
                        "engine": "vllm",
                        "cell": cell,
                        "tokens_per_second": found["tok_s"],
                        "seconds": found["s"],
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    print(f"vllm {name}: {time.monotonic() - began:.0f} s, exit {done.returncode}", flush=True)
    return rows


def table(rows: list[Row]) -> str:
    """One line a cell and system: both engines, their ratio, and the ratio to the best teacher of the cell."""
    speed = {(r["system"], r["engine"], tuple(r["cell"])): r for r in rows if "error" not in r}
    lines = ["| B/P/O | model | ours, tok/s | ms a step | share of bound | vLLM | ours / vLLM | / best teacher |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for cell in dict.fromkeys(tuple(r["cell"]) for r in rows):
        for system in dict.fromkeys(r["system"] for r in rows if tuple(r["cell"]) == cell):
            mine, other = (speed.get((system, engine, cell)) for engine in ("thinkfast", "vllm"))
            teacher = system.split("/")[0]
            teachers = [speed.get((teacher, engine, cell)) for engine in ("thinkfast", "vllm")]
            best = max((t["tokens_per_second"] for t in teachers if t), default=None)
            a = mine["tokens_per_second"] if mine else None
            b = other["tokens_per_second"] if other else None
            share = mine.get("bound_share") if mine else None
            lines.append(
                f"| {'/'.join(map(str, cell))} | {system} | {_number(a)} | "
                f"{mine['ms_per_step']:.2f} | {share:.0%} | {_number(b)} | {_ratio(a, b)} | {_ratio(a, best)} |"
                if mine and share
                else f"| {'/'.join(map(str, cell))} | {system} | {_number(a)} | – | – | {_number(b)} | – | – |"
            )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _ratio(a: float | None, b: float | None) -> str:
    return "–" if a is None or b is None else f"{a / b:.2f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", nargs="*", default=[], help="shapes as in models/shapes.py, without `random:`")
    parser.add_argument("--vllm", nargs="*", default=[], choices=sorted(SAME), help="models of vllm_bench.py")
    parser.add_argument("--vllm-script", type=Path, default=Path("../shared/tools/vllm_bench.py"))
    parser.add_argument("--cells", nargs="*", default=["512,128,512"], help="sequences, prompt, new tokens")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=500, help="most for one model in vLLM")
    parser.add_argument("--out", type=Path, required=True, help="rows are added to this file")
    parser.add_argument("--table", action="store_true", help="only print what --out holds")
    options = parser.parse_args()
    held = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    cells = [(int(b), int(p), int(o)) for b, p, o in (cell.split(",") for cell in options.cells)]
    if not options.table:
        torch.manual_seed(0)
        for system in options.ours:
            held["rows"] += ours(system, cells, options.repeats)
            options.out.write_text(json.dumps(held | provenance(0), indent=1) + "\n")
        for name in options.vllm:
            held["rows"] += vllm(name, cells, options.vllm_script, options.seconds)
            options.out.write_text(json.dumps(held | provenance(0), indent=1) + "\n")
    print(table(held["rows"]))


if __name__ == "__main__":
    main()
