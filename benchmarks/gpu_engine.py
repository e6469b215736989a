"""Tokens per second of the engine on a GPU, end to end, beside vLLM in the same lease; writes results/gpu-engine.json.

    PYTHONPATH=src python3 benchmarks/gpu_engine.py --out results/gpu-engine.json \\
        --models llama-3.2-1b llama-3.2-1b/pure-d64 --cells 64,128,512 512,256,2048 [--vllm vllm.jsonl]

Random bf16 weights, temperature 0.8, forced length; each cell is B sequences, P prompt tokens, O new tokens, after one
short run that compiles and captures. --vllm takes the lines that ../shared/tools/vllm_bench.py printed on the same
machine. Bounds are those of shared/tools/bound.py: report/roofline.py with 3.0 TB/s and 790 TFLOP/s.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from thinkfast.engine.llm import LLM
from thinkfast.engine.request import SamplingParams
from thinkfast.models.loading import Loaded, load_model
from thinkfast.models.shapes import PREFIX
from thinkfast.provenance import provenance
from thinkfast.report.benchconfig import STATES
from thinkfast.report.roofline import ItemSizes, Machine, decode_step

H100 = Machine("H100 80GB, measured", 790e12, ((1e9, 3.0e12),))


def power() -> float | None:
    """Watts the card draws now, if the driver tells."""
    try:
        out = subprocess.run(  # noqa: PLW1510
            ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=5,
        )
        return float(out.stdout.split()[0])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return None


def cell(loaded: Loaded, b: int, p: int, o: int, state: str, samples: int, batch: int) -> dict[str, Any]:
    """One cell; with ``samples`` above 1, b prompts of that many samples each, ``batch`` rows at a time."""
    device = loaded.model.head_weight.device
    torch.cuda.reset_peak_memory_stats(device)
    llm = LLM(loaded, max_batch=batch, max_len=p + o, dtype=torch.bfloat16, device=device, state_dtype=STATES[state])
    rng = random.Random(0)
    prompts = [[rng.randrange(1000, 100000) for _ in range(p)] for _ in range(b)]

    def run(new: int, engine: LLM) -> tuple[float, float]:
        firsts: list[float] = []
        torch.cuda.synchronize()
        began = time.perf_counter()
        params = SamplingParams(n=samples, temperature=0.8, max_tokens=new, ignore_eos=True)
        chains = engine.generate(prompts, params, on_chain=lambda c: firsts.append(c.seconds))
        seconds = time.perf_counter() - began
        if any(len(c.tokens) != new for found in chains for c in found):
            raise RuntimeError("a chain ended early")
        return seconds, min(firsts)

    run(8, llm)
    _, first = run(1, llm)
    steps, decode = llm.stats.steps, llm.stats.decode_seconds
    prefill = llm.stats.prefill_seconds
    seconds, _ = run(o, llm)
    spec = loaded.spec
    # What an average step has to do: the prompt of N samples is read once by all of them.
    context = p / samples + o / 2
    sizes = ItemSizes(2, 2, 2, 2)
    bound = decode_step(spec, min(batch, b * samples), context, sizes).seconds(H100)
    found = {
        "model": loaded.name.removeprefix(PREFIX), "B": b, "P": p, "O": o, "samples": samples, "rows": batch,
        "state": state,
        "seconds": seconds, "tok_s": b * samples * o / seconds,
        "ms_per_step": 1e3 * (llm.stats.decode_seconds - decode) / (llm.stats.steps - steps),
        "steps": llm.stats.steps - steps, "prefill_seconds": llm.stats.prefill_seconds - prefill,
        "bound_ms_per_step": 1e3 * bound, "bound_tok_s": min(batch, b * samples) / bound, "first_token_seconds": first,
        "peak_bytes": torch.cuda.max_memory_allocated(device), "plan": str(llm.plan), "watts_after": power(),
    }  # fmt: skip
    del llm
    gc.collect()
    torch.cuda.empty_cache()
    return found


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--models", nargs="+", default=[])
    ap.add_argument("--cells", nargs="+", default=["64,128,512", "256,128,1024", "512,128,512", "512,256,2048"])
    ap.add_argument("--state", default="bf16", choices=list(STATES))
    ap.add_argument("--samples", type=int, default=1)
    ap.add_argument("--rows", type=int, default=0, help="rows at a time; 0 for all of a cell's")
    ap.add_argument("--vllm", type=Path)
    a = ap.parse_args()
    found = json.loads(a.out.read_text()) if a.out.exists() else {**provenance(0), "ours": [], "vllm": []}
    for name in a.models:
        loaded = load_model(PREFIX + name, torch.bfloat16, "cuda")
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
            print(
                f"{name:28s} {text:14s} x{a.samples} {one['tok_s']:9.0f} tok/s {one['ms_per_step']:7.3f} ms/step "
                f"share {one['bound_ms_per_step'] / one['ms_per_step']:.0%} of {one['bound_tok_s']:.0f}; "
                f"prefill {one['prefill_seconds']:.2f} s, first token {one['first_token_seconds']:.3f} s, "
                f"{one['peak_bytes'] / 2**30:.1f} GiB, {one['seconds']:.2f} s",
                flush=True,
            )
            a.out.write_text(json.dumps(found, indent=1) + "\n")
        del loaded
        gc.collect()
        torch.cuda.empty_cache()
    if a.vllm is not None:
        lines = [line for line in a.vllm.read_text().splitlines() if line.startswith("{")]
        found["vllm"] += [json.loads(line) for line in lines]
    a.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
