"""A teacher in our engine against transformers on the same bf16 checkpoint: fp32 logits, and greedy tokens.

The greedy tokens are the engine's (paged cache, ragged batch of all prompts). They are held against the argmax of
transformers' logits along the same chain, which by induction is its own greedy chain, and for `--generate` prompts
also against `generate` with its cache.

Usage: python benchmarks/teacher_parity.py smollm2 qwen0.5b --prompts 20 --tokens 64 --out out.json
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from publish import publish

from thinkfast.data.problems import load_problems
from thinkfast.engine.llm import LLM
from thinkfast.engine.request import SamplingParams
from thinkfast.models.loading import load_model
from thinkfast.models.ragged import Ragged


@torch.inference_mode()
def compare(name: str, prompts: int, tokens: int, generate: int, problems: str) -> dict[str, object]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    questions = [problem.question for problem in load_problems(problems, prompts)]
    loaded = load_model(name)
    theirs = AutoModelForCausalLM.from_pretrained(loaded.path, dtype=torch.float32).eval()
    reader = AutoTokenizer.from_pretrained(loaded.path)
    coded = [loaded.tokenizer.chat(question) for question in questions]
    text = [[{"role": "user", "content": question}] for question in questions]
    templated = [reader.apply_chat_template(one, add_generation_prompt=True)["input_ids"] for one in text]
    ours = LLM(loaded, max_batch=prompts, max_len=max(map(len, coded)) + tokens)
    start = time.perf_counter()
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    chains = [found[0].tokens for found in ours.generate(coded, params)]
    engine_s = time.perf_counter() - start
    worst, generate_s = 0.0, 0.0
    gaps: list[dict[str, float]] = []
    for i, (prompt, chain) in enumerate(zip(coded, chains, strict=True)):
        whole = torch.tensor([*prompt, *chain])
        mine = loaded.model.logits(loaded.model(whole, Ragged(torch.tensor([len(whole)]))))
        other = theirs(whole[None], use_cache=False).logits[0]
        worst = max(worst, float((mine - other).abs().max()))
        wanted = [other[len(prompt) - 1 : -1].argmax(-1).tolist()]
        if i < generate:
            ids = torch.tensor([prompt])
            start = time.perf_counter()
            options = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            out = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)
            wanted.append(out[0, len(prompt) :].tolist())
            generate_s += time.perf_counter() - start
        for want in wanted:
            if list(chain) != want:
                at = next(i for i, (a, b) in enumerate(zip(chain, want, strict=True)) if a != b)
                row = other[len(prompt) + at - 1]
                gaps.append({"prompt": i, "position": at, "gap": float((row[chain[at]] - row[want[at]]).abs())})
    return {
        "model": name,
        "largest_logit_difference": worst,
        "prompts": prompts,
        "tokens": tokens,
        "prompts_through_generate": min(generate, prompts),
        "prompts_that_differ": len({gap["prompt"] for gap in gaps}),
        "where": gaps,
        "prompt_tokens_equal": coded == templated,
        "engine_seconds": round(engine_s, 1),
        "generate_seconds": round(generate_s, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--generate", type=int, default=20)
    parser.add_argument("--problems", default="gsm8k_test500")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = [compare(name, given.prompts, given.tokens, given.generate, given.problems) for name in given.models]
    publish({"teacher_parity": found}, given.out)


if __name__ == "__main__":
    main()
