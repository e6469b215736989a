"""Where a decode step on a GPU goes, by what a layer does, beside the bound of each part: Nsight Compute over one step.

    export PYTHONPATH=src
    python3 benchmarks/gpu_profile.py random:llama-3.2-1b/pure-d16:512 --out results/gpu-profile.json

Each is MODEL:ROWS. A step at --context tokens is timed as the engine runs it, among the first ones of a chip at rest
and after --seconds of work, with the chip's clock and power; then a second process runs it under ncu, one kernel at a
time and none overlapped, which counts each kernel's time and bytes from memory. So parts and step differ by what
overlaps, by launches, and by the clock that the power limit leaves. Bounds are report/roofline.py's, at 3.0 TB/s and
790 TFLOP/s.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from gpu_engine import H100
from gpu_long import runner, timed
from publish import publish

from thinkfast.engine.cuda.runner import CudaRunner
from thinkfast.models.loading import Loaded, load_model
from thinkfast.models.spec import ModelSpec

TIME, BYTES = "gpu__time_duration.sum", "dram__bytes.sum"
UNITS = {"nsecond": 1e-9, "ns": 1e-9, "usecond": 1e-6, "us": 1e-6, "msecond": 1e-3, "ms": 1e-3, "second": 1.0, "s": 1.0}
UNITS |= {"byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}
NCU = "/usr/local/cuda/bin/ncu"
AT_REST, FIRST, MOST = 1.5, 30, 2000
# Kernels that are not products, by what they belong to.
PARTS = {
    "_embed_norm": "norms", "_add_norm": "norms", "_inverse_rms": "norms", "prepare": "mixer", "advance": "mixer",
    "whole": "mixer", "_attend": "attention", "_attend_prompt": "attention", "_merge": "attention",
    "_swiglu": "SwiGLU", "_scan": "sampler", "_pick": "sampler", "_filtered": "sampler", "_round_rows": "norms",
}  # fmt: skip
# Products of a layer, each with the one behind it.
BEHIND = {"out": "gate, up", "gate, up": "down", "down": "into"}
MIXING = ("mixer", "attention")


def roles(kernels: Iterable[str]) -> list[str]:
    """What each of a step's kernels, in order, is for."""
    found: list[str] = []
    place = "into"
    for name in kernels:
        part = PARTS.get(name)
        if part in MIXING:
            place = "out"
        if part is None and "reduce" in name.lower():  # adds up what the one before has made in shares
            part = found[-1]
        found.append(part or place)
        if part is None:
            place = BEHIND.get(place, place)
    last = max((i for i, role in enumerate(found) if role in MIXING), default=0)
    return [role if i <= last or role != "into" else "head" for i, role in enumerate(found)]


def bounds(spec: ModelSpec, rows: int, context: float) -> dict[str, float]:
    """Seconds that each part takes at least."""
    d, inner, mamba = spec.d_model, spec.n_heads * spec.head_dim, spec.n_layers - spec.n_attention
    qkv = (spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim
    into = spec.n_attention * qkv + (mamba * spec.in_proj_rows if mamba else 0)
    rate = H100.rates[0][1]

    def product(weights: float) -> float:
        return max(2 * weights / rate, 2 * rows * weights / H100.peak)

    state = 2 * rows * mamba * (inner * spec.d_state + spec.d_conv * spec.conv_channels) * 2 if mamba else 0
    return {
        "into": product(d * into), "out": product(spec.n_layers * d * inner),
        "gate, up": product(spec.n_layers * 2 * d * spec.d_ff), "down": product(spec.n_layers * d * spec.d_ff),
        "head": product(d * spec.vocab_size), "mixer": state / rate,
        "attention": rows * context * spec.kv_bytes_per_token(2) / rate if spec.n_attention else 0.0,
        "sampler": 4 * rows * spec.vocab_size / rate,
    }  # fmt: skip


def started(loaded: Loaded, rows: int, context: int, more: int) -> CudaRunner:
    """A runner whose chains have as good as ``context`` tokens, with room for ``more``."""
    run = runner(loaded, rows, context + more, "bf16", 0)
    for _ in range(max(8, context - 16)):
        run.step()
    torch.cuda.synchronize()
    return run


def running(loaded: Loaded, rows: int, context: int, seconds: float) -> dict[str, float]:
    """The step as the engine runs it."""
    run = started(loaded, rows, context, MOST + 64)
    time.sleep(AT_REST)
    first = timed(run, FIRST)
    steps = min(MOST, int(1e3 * seconds / first))
    watch = subprocess.Popen(
        ["nvidia-smi", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits", "-lms", "100"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    timed(run, steps // 2)
    later = timed(run, steps - steps // 2)
    watch.terminate()
    seen = [tuple(map(float, line.split(","))) for line in watch.communicate()[0].splitlines() if line.count(",") == 1]
    seen = seen[len(seen) // 2 : -1] or seen
    clock, power = (sum(column) / len(column) for column in zip(*seen, strict=True)) if seen else (0.0, 0.0)
    return {"first_ms": first, "ms": later, "clock_mhz": clock, "power_watts": power}


def profiled(model: str, rows: int, context: int) -> list[tuple[str, float, float]]:
    """Name, seconds and bytes of every kernel of one step, as ncu sees them."""
    command = [
        NCU, "--csv", "--page", "raw", "--metrics", f"{TIME},{BYTES}", "--profile-from-start", "off", "--clock-control",
        "none", "--cache-control", "none", sys.executable, __file__, f"{model}:{rows}", "--context", str(context),
        "--one-step",
    ]  # fmt: skip
    said = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ, timeout=240)
    table = said.stdout[said.stdout.find('"ID"') :]
    lines = list(csv.DictReader(table.splitlines()))
    if len(lines) < 2:
        raise RuntimeError(f"ncu said: {(said.stdout + said.stderr)[-2000:]}")
    units, found = lines[0], lines[1:]

    def value(line: dict[str, str], metric: str) -> float:
        return float(line[metric].replace(",", "")) * UNITS[units[metric]]

    return [(line["Kernel Name"].split("(")[0], value(line, TIME), value(line, BYTES)) for line in found]


def measure(model: str, rows: int, context: int, seconds: float) -> dict[str, Any]:
    """One cell."""
    loaded = load_model(model, torch.bfloat16, "cuda")
    spec, told = loaded.spec, running(loaded, rows, context, seconds)
    del loaded
    gc.collect()
    torch.cuda.empty_cache()
    kernels = profiled(model, rows, context)
    least = bounds(spec, rows, context)
    parts: dict[str, dict[str, Any]] = defaultdict(lambda: {"us": 0.0, "bytes": 0.0, "kernels": 0, "names": []})
    for (name, took, moved), role in zip(kernels, roles(name for name, *_ in kernels), strict=True):
        part = parts[role]
        part["us"] += 1e6 * took
        part["bytes"] += moved
        part["kernels"] += 1
        if name not in part["names"]:
            part["names"].append(name)
    for role, part in parts.items():
        part["bound_us"] = 1e6 * least.get(role, 0.0)
    print(f"== {model}, {rows} rows, {context} tokens of context: {told}")
    for role, part in sorted(parts.items(), key=lambda item: -item[1]["us"]):
        rate = part["bytes"] / part["us"] / 1e6
        told_of = f"{role:10s} {part['us']:8.1f} us, bound {part['bound_us']:7.1f}, {rate:5.2f} TB/s"
        print(f"{told_of}, {' '.join(part['names'])}"[:200])
    bound = 1e3 * sum(least.values())
    return {"model": model, "rows": rows, "context": context, **told, "bound_ms": bound, "parts": dict(parts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="+", help="MODEL:ROWS")
    parser.add_argument("--context", type=int, default=384)
    parser.add_argument("--seconds", type=float, default=3.0, help="of work, in whose second half the step is timed")
    parser.add_argument("--one-step", action="store_true", help="what runs under ncu")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    cells = [(model, int(rows)) for model, _, rows in (cell.rpartition(":") for cell in a.cells)]
    if a.one_step:
        model, rows = cells[0]
        run = started(load_model(model, torch.bfloat16, "cuda"), rows, a.context, 64)
        torch.cuda.profiler.start()
        run.step()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
        return
    found = []
    for model, rows in cells:
        try:
            found.append(measure(model, rows, a.context, a.seconds))
        except (RuntimeError, subprocess.TimeoutExpired) as error:  # one cell must not cost the others
            print(f"{model}, {rows} rows: {error}", flush=True)
            continue
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        publish({"cells": found}, a.out, unprinted=["cells", "provenance"])


if __name__ == "__main__":
    main()
