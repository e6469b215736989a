"""What judging costs: the same chains with answers read, votes and events, and without, in turns in one run.

Both runs draw the same tokens (samples depend on seed, request and index alone) through one engine; the judged one is
`solve_many` with a rule that never stops and a deadline that never comes. Overhead is its wall time over the bare
engine's, less one; the median over rounds.

    python benchmarks/overhead.py --rows 64 --limit 32 --out results/overhead-cpu.json
    python benchmarks/overhead.py --model qwen0.5b --problems gsm8k_val500 --device cuda --rows 256 --limit 128
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path

import torch
from publish import publish

from thinkfast.data.problems import load_problems
from thinkfast.data.prompts import prompt_tokens
from thinkfast.engine.llm import LLM
from thinkfast.engine.request import Request, SamplingParams
from thinkfast.judge.deciding import never
from thinkfast.judge.solve import solve_many
from thinkfast.models.loading import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--problems", default="tiny_val:3")
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("-n", type=int, default=8)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    questions = [problem.question for problem in load_problems(options.problems, options.limit)]
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    loaded = load_model(options.model, dtype, options.device)
    prompts = [tuple(prompt_tokens(loaded.tokenizer, question)) for question in questions]
    longest = max(map(len, prompts)) + options.max_tokens
    llm = LLM(loaded, options.rows, longest, dtype=dtype, device=options.device)
    params = SamplingParams(n=options.n, temperature=0.8, max_tokens=options.max_tokens)
    requests = [Request(str(i), prompt, params) for i, prompt in enumerate(prompts)]

    def bare() -> None:
        for _ in llm.stream(requests, fair=True):
            pass

    def judged() -> None:
        solve_many(
            questions, seconds=math.inf, model=llm, n=options.n, temperature=0.8, max_tokens=options.max_tokens,
            stop_rule=never,
        )  # fmt: skip

    times: dict[str, list[float]] = {"bare": [], "judged": []}
    tokens: dict[str, list[int]] = {"bare": [], "judged": []}
    for turn in range(options.rounds + 1):
        for name, work in (("bare", bare), ("judged", judged)):
            before, began = llm.stats.generated_tokens, time.perf_counter()
            work()
            if turn:  # the first compiles, captures and warms
                times[name].append(time.perf_counter() - began)
                tokens[name].append(llm.stats.generated_tokens - before)
                print(f"round {turn} {name}: {times[name][-1]:.2f} s, {tokens[name][-1]:,} tokens", flush=True)
    ratios = [b / a for a, b in zip(times["bare"], times["judged"], strict=True)]
    result = {
        "what": "wall time of sampling with reading, voting and events over that of sampling alone, less one",
        "overhead_share": statistics.median(ratios) - 1,
        "rounds": ratios,
        "seconds": times,
        "tokens": tokens,
        "chains": options.n * len(questions),
        "rows": options.rows,
        "model": options.model,
        "problems": options.problems,
        "device": options.device,
    }
    publish(result, options.out)


if __name__ == "__main__":
    main()
