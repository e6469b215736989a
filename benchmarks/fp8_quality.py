"""What weights in eight bits change: a model's next-token distributions on written solutions, and its greedy answers.

    python benchmarks/fp8_quality.py --model qwen0.5b --problems gsm8k_val500 --limit 48 --out results/fp8-qwen.json
    python benchmarks/fp8_quality.py --model tiny-pure --problems tiny_test --limit 500 --answers --out FILE.json

The same weights twice, as they are and by models/fp8.py: mean KL divergence in nats, share of equal likeliest tokens,
and the loss (nats a token) of both, on the problems' own solutions after the chat prompt. --answers: greedy answers of
both, and how many change. What comes out depends on the rounding alone, so a CPU will do.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from answering import compared, greedy
from publish import publish

from thinkfast.data.problems import Problem, load_problems
from thinkfast.engine.llm import LLM
from thinkfast.models.fp8 import in_fp8
from thinkfast.models.loading import PRECISIONS, Loaded, load_model
from thinkfast.models.ragged import Ragged


@torch.inference_mode()
def distributions(exact: Loaded, rounded: Loaded, problems: list[Problem]) -> dict[str, float]:
    """Averages over all tokens of all solutions."""
    device = exact.model.head_weight.device
    kl = same = loss = loss_rounded = 0.0
    count = 0
    for done, problem in enumerate(problems):
        prompt = exact.tokenizer.chat(problem.question)
        solution = exact.tokenizer.encode(problem.solution or "")
        tokens = torch.tensor([*prompt, *solution], device=device)
        ragged = Ragged(torch.tensor([len(tokens)], device=device))
        spans = slice(len(prompt) - 1, len(tokens) - 1)
        p, q = (
            each.model.logits(each.model(tokens, ragged)[spans]).float().log_softmax(-1) for each in (exact, rounded)
        )
        target = tokens[len(prompt) :, None]
        kl += float((p.exp() * (p - q)).sum())
        same += float((p.argmax(-1) == q.argmax(-1)).sum())
        loss -= float(p.gather(-1, target).sum())
        loss_rounded -= float(q.gather(-1, target).sum())
        count += len(solution)
        print(f"{done + 1} of {len(problems)}: KL {kl / count:.4f}, same {same / count:.3f}", flush=True)
    return {
        "tokens": count, "kl": kl / count, "same_top": same / count, "loss": loss / count,
        "loss_fp8": loss_rounded / count,
    }  # fmt: skip


def answers(both: dict[str, Loaded], problems: list[Problem], tokens: int, rows: int) -> dict[str, dict[str, float]]:
    """Accuracy of greedy answers, and the share that changes."""
    given = {}
    for form, loaded in both.items():
        prompts = [loaded.tokenizer.chat(problem.question) for problem in problems]
        weight = loaded.model.head_weight
        llm = LLM(loaded, rows, tokens + max(map(len, prompts)), weight.dtype, weight.device)
        given[form] = greedy(llm, prompts, tokens)
    return compared(given, problems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--problems", required=True)
    parser.add_argument("--limit", type=int, default=48)
    parser.add_argument("--answers", action="store_true")
    parser.add_argument("--max-tokens", type=int, default=320)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"], help="of activations, and of the rest")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    exact = load_model(a.model, PRECISIONS[a.dtype], a.device)
    rounded = replace(exact, model=in_fp8(exact.model))
    problems = load_problems(a.problems, a.limit)
    told: dict[str, Any] = {"model": a.model, "problems": a.problems, "count": len(problems), "dtype": a.dtype}
    told["distributions"] = distributions(exact, rounded, problems)
    if a.answers:
        told["answers"] = answers({a.dtype: exact, "fp8": rounded}, problems, a.max_tokens, a.rows)
    publish(told, a.out)


if __name__ == "__main__":
    main()
