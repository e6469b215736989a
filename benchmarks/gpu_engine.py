"""Tokens per second of the engine on a GPU, end to end, beside vLLM in the same lease; writes results/gpu-engine.json.

    PYTHONPATH=src python3 benchmarks/gpu_engine.py --out results/gpu-engine.json \\
        --models llama-3.2-1b llama-3.2-1b/pure-d64 --cells 64,128,512 512,256,2048 [--vllm vllm.jsonl]

Random bf16 weights, temperature 0.8, forced length; each cell is B sequences, P prompt tokens, O new tokens, after one
short run that compiles and captures. A step's ms are what a run of O tokens takes longer than one of two. --vllm takes
the lines that ../shared/tools/vllm_bench.py printed on the same machine, --elsewhere those of other leases, for vLLM
hangs on its host. Bounds are those of shared/tools/bound.py: report/roofline.py with 3.0 TB/s and 790 TFLOP/s.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from thinkfast.engine.llm import LLM
from thinkfast.engine.request import SamplingParams
from thinkfast.models.fp8 import is_fp8
from thinkfast.models.loading import Loaded, load_as
from thinkfast.models.sources.catalogue import RANDOM
from thinkfast.provenance import provenance
from thinkfast.report.benchconfig import STATES
from thinkfast.report.energy import energy_meter
from thinkfast.report.roofline import ItemSizes, Machine, decode_step

PROTOTYPE = re.compile(
    r"^(?P<kind>\w+) +B *(?P<B>\d+) ctx *(?P<context>\d+) N *(?P<d_state>\d+) .*?(?P<ms>[\d.]+) ms", re.MULTILINE
)
# A cell that takes less than this is run so often, and its median told.
SHORT_SECONDS, REPEATS = 1.0, 3
# Tokens after which all rows of a cell have come in, and every size of a batch that it meets has been captured: those
# that it does not meet, which LLM.prepare would capture too, would cost minutes over all cells.
ALL_IN = 64
H100 = Machine("H100 80GB, measured", 790e12, ((1e9, 3.0e12),))


def outside(device: torch.device) -> int:
    """Bytes taken on ``device`` beside torch's: graphs, compiled kernels, cuBLAS's own."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def cell(loaded: Loaded, b: int, p: int, o: int, state: str, samples: int, batch: int) -> dict[str, Any]:
    """One cell; with ``samples`` above 1, b prompts of that many samples each, ``batch`` rows at a time."""
    fp8 = is_fp8(loaded.model)
    device = loaded.model.head_weight.device
    torch.cuda.reset_peak_memory_stats(device)
    others = outside(device)
    llm = LLM(loaded, max_batch=batch, max_len=p + o, device=device, state_dtype=STATES[state])
    rng = random.Random(0)
    prompts = [[rng.randrange(1000, 100000) for _ in range(p)] for _ in range(b)]

    def run(new: int, engine: LLM) -> tuple[float, float]:
        firsts: list[float] = []
        torch.cuda.synchronize()
        began = time.perf_counter()
        params = SamplingParams(n=samples, temperature=0.8, max_tokens=new, ignore_eos=True, detokenize=False)
        chains = engine.generate(prompts, params, on_chain=lambda c: firsts.append(c.seconds))
        seconds = time.perf_counter() - began
        if any(len(c.tokens) != new for found in chains for c in found):
            raise RuntimeError("a chain ended early")
        return seconds, min(firsts)

    run(min(o, ALL_IN), llm)
    before, shorts = llm.stats.steps, [run(2, llm) for _ in range(REPEATS)]
    short_steps = (llm.stats.steps - before) // REPEATS
    short, first = (statistics.median(column) for column in zip(*shorts, strict=True))
    steps, decode = llm.stats.steps, llm.stats.decode_seconds
    prefill = llm.stats.prefill_seconds
    with energy_meter(device) as meter:
        mark = meter.mark()
        each = [run(o, llm)[0]]
        while len(each) < REPEATS and each[0] < SHORT_SECONDS:
            each.append(run(o, llm)[0])
        joules = meter.since(mark)
    seconds, runs = statistics.median(each), len(each)
    done = (llm.stats.steps - steps) // runs
    spec = loaded.spec
    # What an average step has to do: the prompt of N samples is read once by all of them.
    context = p / samples + o / 2
    sizes = ItemSizes(1 if fp8 else 2, 2, 2, 2, head=2)
    bound = decode_step(spec, min(batch, b * samples), context, sizes).seconds(H100)
    found = {
        "model": loaded.name.removeprefix(RANDOM), "B": b, "P": p, "O": o, "samples": samples, "rows": batch,
        "state": state,
        "seconds": seconds, "tok_s": b * samples * o / seconds,
        # What a step costs by itself: two runs that differ in nothing but their number of steps.
        "decode_ms_per_step": 1e3 * (seconds - short) / (done - short_steps),
        "ms_per_step": 1e3 * (llm.stats.decode_seconds - decode) / runs / done,
        "steps": done, "short_seconds": short, "short_steps": short_steps,
        "prefill_seconds": (llm.stats.prefill_seconds - prefill) / runs, "runs": each,
        "bound_ms_per_step": 1e3 * bound, "bound_tok_s": min(batch, b * samples) / bound, "first_token_seconds": first,
        "peak_bytes": torch.cuda.max_memory_allocated(device), "outside_bytes": outside(device) - others,
        "planned_bytes": llm.plan.weight_bytes + llm.plan.needed_bytes, "plan": str(llm.plan),
        "joules_per_token": None if joules is None else joules / (runs * b * samples * o), "fp8_weights": fp8,
    }  # fmt: skip
    del llm
    gc.collect()
    torch.cuda.empty_cache()
    return found


def merged(files: Sequence[Path]) -> dict[str, Any]:
    """The cells of several calls as one result; they have to be of one machine, commit and set of versions."""
    results: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files]
    first = results[0]
    for file, other in zip(files[1:], results[1:], strict=True):
        for key in ("machine", "versions", "commit", "source", "seed"):
            if other[key] != first[key]:
                raise SystemExit(f"{file} has another {key} than {files[0]}: {other[key]} and {first[key]}")
        first["ours"] += other["ours"]
    return first


def lines_of(files: Sequence[Path]) -> list[dict[str, Any]]:
    """What vllm_bench.py printed, as far as it tells of cells."""
    return [json.loads(line) for file in files for line in file.read_text().splitlines() if line.startswith("{")]


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--models", nargs="+", default=[])
    ap.add_argument("--cells", nargs="+", default=["64,128,512", "256,128,1024", "512,128,512", "512,256,2048"])
    ap.add_argument("--state", default="bf16", choices=list(STATES))
    ap.add_argument("--samples", type=int, default=1)
    ap.add_argument("--rows", type=int, default=0, help="rows at a time; 0 for all of a cell's")
    ap.add_argument("--fp8", action="store_true", help="the blocks' weights in eight bits")
    ap.add_argument(
        "--ours", type=Path, nargs="+", default=[], help="merge what other calls on one machine have written"
    )
    ap.add_argument("--vllm", type=Path, nargs="+", default=[])
    ap.add_argument("--elsewhere", type=Path, nargs="+", default=[], help="what vLLM came to in other leases")
    ap.add_argument("--prototype", type=Path, help="what ../shared/tools/decode_step_prototype.py printed beside it")
    a = ap.parse_args()
    if a.ours:
        found = merged(a.ours)
    else:
        found = json.loads(a.out.read_text()) if a.out.exists() else {**provenance(0), "ours": [], "vllm": []}
    for name in a.models:
        loaded = load_as(RANDOM + name, "fp8" if a.fp8 else "bf16", "cuda")
        torch.cuda.empty_cache()  # what the weights were before
        for text in a.cells:
            b, p, o = map(int, text.split(","))
            try:
                one = cell(loaded, b, p, o, a.state, a.samples, a.rows or b * a.samples)
            except Exception as error:  # noqa: BLE001 one cell that does not fit must not cost the others
                print(f"{name} {text}: {error!r}"[:500], flush=True)
                gc.collect()
                torch.cuda.empty_cache()
                continue
            found["ours"].append(one)
            share = one["bound_ms_per_step"] / one["decode_ms_per_step"]
            print(
                f"{name:28s} {text:14s} {one['tok_s']:9.0f} tok/s {one['decode_ms_per_step']:7.3f} ms/step "
                f"share {share:.0%} of {one['bound_tok_s']:.0f}; prefill {one['prefill_seconds']:.2f} s, "
                f"first token {one['first_token_seconds']:.3f} s, {one['peak_bytes'] / 2**30:.1f} GiB, "
                f"{one['seconds']:.2f} s, {one['joules_per_token'] or 0:.4f} J/token",
                flush=True,
            )
            a.out.write_text(json.dumps(found, indent=1) + "\n")
        del loaded
        gc.collect()
        torch.cuda.empty_cache()
    found["vllm"] += lines_of(a.vllm)
    found["vllm_elsewhere"] = found.get("vllm_elsewhere", []) + lines_of(a.elsewhere)
    if a.prototype is not None:
        found["prototype"] = [m.groupdict() for m in PROTOTYPE.finditer(a.prototype.read_text())]
    a.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
