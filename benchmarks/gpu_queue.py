"""Tokens per second of queues longer than the batch: equal lengths, ragged ones, a deadline, samples of shared prompts,
prompts of very different lengths, a long one here and there.

    export PYTHONPATH=src
    python3 benchmarks/gpu_queue.py --model random:llama-3.2-1b/pure-d16 --rows 512 --out results/gpu-queue.json
    python3 benchmarks/gpu_queue.py --model random:llama-3.2-1b --kinds samples independent --prompts 256 --new 64

equal: --rounds times as many prompts as rows, --new tokens each. ragged: lengths drawn from a quarter of that up to all
of it, so that rows end and others enter at every few steps. deadline: the same, cut off after --seconds. samples:
--samples chains of each of --prompts prompts; independent: as many chains, each with a prompt of its own. prompts: as
equal, after prompts of an eighth to eight times --prompt tokens, as many of each doubling. long: as equal, and every
64th prompt has --long tokens, which are prefilled in pieces.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from publish import publish

from thinkfast.engine.llm import LLM
from thinkfast.engine.request import Request, SamplingParams
from thinkfast.models.loading import load_model

KINDS = ("equal", "ragged", "deadline", "samples", "independent", "prompts", "long")
LONGEST = 8


def requests(kind: str, a: argparse.Namespace, vocabulary: int, tag: str) -> list[Request]:
    """The queue of one kind, the same in every run but for its ids."""
    rng = random.Random(a.seed)
    shared = kind == "samples"
    count = {"samples": a.prompts, "independent": a.prompts * a.samples}.get(kind, a.rounds * a.rows)
    found = []
    for i in range(count):
        length = rng.randint(a.new // 4, a.new) if kind in ("ragged", "deadline") else a.new
        params = SamplingParams(
            a.samples if shared else 1, temperature=0.8, max_tokens=length, ignore_eos=True, detokenize=False
        )
        size = round(a.prompt * LONGEST ** rng.uniform(-1, 1)) if kind == "prompts" else a.prompt
        size = a.long if kind == "long" and i % 64 == 32 else size
        prompt = tuple(rng.randrange(vocabulary) for _ in range(size))
        found.append(Request(f"{tag}{i}", prompt, params))
    return found


def measure(kind: str, llm: LLM, a: argparse.Namespace) -> dict[str, Any]:
    """One queue."""
    seconds = a.seconds if kind == "deadline" else None
    queue = requests(kind, a, llm.spec.vocab_size, kind)
    s = llm.stats
    s.longest_prefill = 0.0
    before = s.steps, s.prefill_tokens, s.prefill_seconds, s.decode_seconds
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    lengths = [len(chain.tokens) for chain in llm.stream(queue, seconds=seconds)]
    took = time.perf_counter() - began
    tokens = sum(lengths)
    steps, prefilled = s.steps - before[0], s.prefill_tokens - before[1]
    told = {
        "kind": kind, "requests": len(queue), "chains": len(lengths), "tokens": tokens, "seconds": took,
        "tok_s": tokens / took, "steps": steps, "rows_per_step": tokens / max(steps, 1), "prefill_tokens": prefilled,
        "prefill_seconds": s.prefill_seconds - before[2], "decode_seconds": s.decode_seconds - before[3],
        "longest_prefill_ms": 1e3 * s.longest_prefill,
    }  # fmt: skip
    if seconds is not None:
        told["late_ms"] = 1e3 * (took - seconds)
    print(json.dumps(told), flush=True)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["equal", "ragged", "deadline"])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--long", type=int, default=32768)
    parser.add_argument("--new", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--prefill-tokens", type=int, help="most between two steps")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--lease", type=int, default=1, help="which card's, where --out holds several")
    parser.add_argument("--out", type=Path, help="earlier figures there are kept")
    a = parser.parse_args()
    dtype = torch.bfloat16 if a.device == "cuda" else torch.float32
    longest = max(a.prompt * (LONGEST if "prompts" in a.kinds else 1), a.long if "long" in a.kinds else 0) + a.new
    llm = LLM(
        load_model(a.model, dtype, a.device), a.rows, longest, dtype, a.device, dtype, prefill_tokens=a.prefill_tokens
    )
    # Compile and capture what will be met.
    warm = argparse.Namespace(**{**vars(a), "new": 16, "rounds": 2, "prompts": 2, "seconds": 1.0})
    for kind in a.kinds:
        list(llm.stream(requests(kind, warm, llm.spec.vocab_size, "warm " + kind)))
    setting = {key: getattr(a, key) for key in ("rows", "prompt", "long", "new", "samples")}
    setting |= {"between_steps": a.prefill_tokens, "lease": a.lease}
    found = [{"model": a.model, **setting, **measure(kind, llm, a)} for _ in range(a.repeats) for kind in a.kinds]
    earlier = json.loads(a.out.read_text())["queues"] if a.out is not None and a.out.exists() else []
    publish({"queues": [*earlier, *found]}, a.out, a.seed, unprinted=["queues"])


if __name__ == "__main__":
    main()
