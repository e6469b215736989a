"""Run by a Python that has vLLM: greedy tokens and log-probabilities of a stock checkpoint, in fp32.

It imports nothing of thinkfast; job and answer are those of llama_peer.py, without texts.

Usage: ``python vllm_peer.py job.json answer.json``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

SHORTEST = 128  # vLLM's own blocks of a Mamba layer; it hangs on a hybrid whose longest sequence is below one
GIB_FOR_KV = "1"  # without a word it takes nine tenths of the machine, beside us and whatever else runs


def main(job_path: str, answer_path: str) -> None:
    """Read the job, run it, write the answer."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", GIB_FOR_KV)
    vllm: Any = importlib.import_module("vllm")  # so that nobody without vLLM misses it
    job = json.loads(Path(job_path).read_text())
    sequences = job["sequences"]
    longest = max(len(s["prompt"]) + s["new"] for s in sequences)
    llm = vllm.LLM(
        job["model"],
        dtype="float32",
        max_model_len=longest,
        max_num_seqs=len(sequences),
        enforce_eager=True,
        enable_prefix_caching=False,
        seed=0,
    )
    prompts = [{"prompt_token_ids": s["prompt"]} for s in sequences]
    params = [
        vllm.SamplingParams(temperature=0, max_tokens=s["new"], ignore_eos=True, logprobs=0, prompt_logprobs=0)
        for s in sequences
    ]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    answer = {"version": vllm.__version__, "sequences": [read(output) for output in outputs], "texts": []}
    Path(answer_path).write_text(json.dumps(answer))


def read(output: Any) -> dict[str, list[Any]]:
    """One request's tokens, and the log-probability of every token but the prompt's first."""
    done = output.outputs[0]
    tokens = list(done.token_ids)
    prompt = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    logprobs = [entry[token].logprob for token, entry in prompt]
    logprobs += [entry[token].logprob for token, entry in zip(tokens, done.logprobs, strict=True)]
    return {"tokens": tokens, "logprobs": logprobs}


if __name__ == "__main__":
    main(*sys.argv[1:3])
