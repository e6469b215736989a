"""Long runs on a GPU: is a step as fast at the end as at the beginning, and what do narrow SSM states change?

    export PYTHONPATH=src
    python3 benchmarks/gpu_long.py flat --model random:llama-3.2-1b/pure-d64 --out results/gpu-flat.json
    python3 benchmarks/gpu_long.py drift --model tiny-pure --problems tiny_test --out results/gpu-drift.json

flat: forced chains, ms a step over windows. drift: the tokens of a run with fp32 states are fed to runs with bf16 and
fp8 states, and their next-token distributions compared at every --every-th step: KL divergence and share of equal
likeliest tokens, over quarters of the run. With --problems also greedy answers, and how many a narrow state changes.
Weights, keys and values are bf16 in all of them.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from answering import compared, greedy
from publish import publish

from thinkfast.data.problems import load_problems
from thinkfast.engine.cuda.runner import CudaRunner
from thinkfast.engine.llm import LLM
from thinkfast.engine.request import SamplingParams
from thinkfast.engine.rows import RowStart
from thinkfast.engine.runner import Start
from thinkfast.models.loading import Loaded, load_model
from thinkfast.report.benchconfig import STATES

SAMPLED = SamplingParams(temperature=0.8, ignore_eos=True)
PROMPT = 8


def engine(loaded: Loaded, rows: int, length: int, state: str) -> LLM:
    """``loaded`` on its GPU with SSM states in ``state``."""
    device = loaded.model.head_weight.device
    return LLM(loaded, rows, length, torch.bfloat16, device, STATES[state])


def runner(loaded: Loaded, rows: int, length: int, state: str, seed: int) -> CudaRunner:
    """Its runner with ``rows`` rows of random prompts, forked and ready for ``length`` steps."""
    found = engine(loaded, rows, PROMPT + length, state)._runner
    if not isinstance(found, CudaRunner):
        raise SystemExit("this needs a CUDA GPU")
    rng = random.Random(seed)
    vocabulary = loaded.spec.vocab_size
    prompts = [[rng.randrange(vocabulary) for _ in range(PROMPT)] for _ in range(rows)]
    for i, prompt in enumerate(found.prefill(prompts)):
        found.fork([Start(prompt, (RowStart(i, SAMPLED, length, PROMPT),), last=True)])
    return found


def timed(run: CudaRunner, steps: int) -> float:
    """ms of one of ``steps`` steps."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        run.step()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began) / steps


def flat(loaded: Loaded, rows: int, new: int, window: int, seed: int) -> dict[str, Any]:
    """ms a step over windows of ``window`` steps."""
    run = runner(loaded, rows, new + 16, "bf16", seed)
    run.step()
    times = [timed(run, window) for _ in range(new // window)]
    # The first window has the chip cold, and below its power limit.
    later = times[1:]
    print(f"{times[0]:.3f} ms first, then {later[0]:.3f} to {later[-1]:.3f}, {min(later):.3f} to {max(later):.3f}")
    return {"rows": rows, "new": new, "window": window, "ms": times, "spread": max(later) / min(later) - 1}


@torch.inference_mode()
def drift(loaded: Loaded, rows: int, steps: int, every: int, seed: int) -> dict[str, Any]:
    """KL in nats to the run with fp32 states, and share of equal likeliest tokens, by quarters of ``steps`` steps."""
    runs = {state: runner(loaded, rows, steps + 16, state, seed) for state in STATES}
    true = runs["fp32"]
    slots = torch.tensor([row.slot for row in true.book.rows], device=true.device)
    found: dict[str, list[tuple[float, float]]] = {state: [] for state in STATES if state != "fp32"}
    for step in range(steps):
        for state in found:
            runs[state].state.token[slots] = true.state.token[slots]
        for run in runs.values():
            run.step()
        if step % every == every - 1:
            p = true._decode.logits[:rows].float().log_softmax(-1)
            for state, told in found.items():
                q = runs[state]._decode.logits[:rows].float().log_softmax(-1)
                same = (p.argmax(-1) == q.argmax(-1)).float().mean()
                told.append((float((p.exp() * (p - q)).sum(-1).mean()), float(same)))
    told_of: dict[str, Any] = {"rows": rows, "steps": steps, "every": every}
    for state, told in found.items():
        quarter = len(told) // 4
        quarters = [told[i * quarter : (i + 1) * quarter] for i in range(4)]
        told_of[state] = {
            "kl": [sum(kl for kl, _ in part) / len(part) for part in quarters],
            "same_top": [sum(same for _, same in part) / len(part) for part in quarters],
        }
        print(state, told_of[state], flush=True)
    return told_of


def answers(loaded: Loaded, problems: str, limit: int, tokens: int) -> dict[str, Any]:
    """Greedy answers by state, and the share that a narrow state changes."""
    asked = load_problems(problems, limit)
    prompts = [loaded.tokenizer.chat(problem.question) for problem in asked]
    longest = tokens + max(map(len, prompts))
    given = {state: greedy(engine(loaded, min(512, len(prompts)), longest, state), prompts, tokens) for state in STATES}
    return {"problems": problems, "count": len(asked), **compared(given, asked)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["flat", "drift"])
    parser.add_argument("--model", default="random:llama-3.2-1b/pure-d64")
    parser.add_argument("--rows", type=int, help="512 for flat, 16 for drift")
    parser.add_argument("--new", type=int, help="tokens a row: 32,768 for flat, 4,096 for drift")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--every", type=int, default=16)
    parser.add_argument("--problems", help="also compare greedy answers to these")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    loaded = load_model(a.model, torch.bfloat16, "cuda")
    told: dict[str, Any] = {"model": a.model}
    if a.what == "flat":
        told["flat"] = flat(loaded, a.rows or 512, a.new or 32768, a.window, a.seed)
    else:
        told["drift"] = drift(loaded, a.rows or 16, a.new or 4096, a.every, a.seed)
        if a.problems:
            told["answers"] = answers(loaded, a.problems, a.limit, a.max_tokens)
    publish(told, a.out, a.seed, unprinted=["flat", "drift", "answers"])


if __name__ == "__main__":
    main()
