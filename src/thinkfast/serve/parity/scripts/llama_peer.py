"""Run by a Python that has llama-cpp-python: greedy tokens, log-probabilities and tokenisation of a GGUF model.

It imports nothing of thinkfast. job.json: {"model": file, "sequences": [{"prompt": [ids], "new": n}], "texts": [...],
"threads": n}. The answer: {"version", "sequences": [{"tokens", "logprobs"}], "texts": [[ids]]}, where "logprobs" are
those of every token but the prompt's first.

Usage: ``python llama_peer.py job.json answer.json``.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

FP32 = 0  # ggml's number of the type, for keys and values: the default, fp16, costs 1e-3


def main(job_path: str, answer_path: str) -> None:
    """Read the job, run it, write the answer."""
    llama_cpp: Any = importlib.import_module("llama_cpp")  # so that nobody without it misses it
    job = json.loads(Path(job_path).read_text())
    longest = max(len(s["prompt"]) + s["new"] for s in job["sequences"])
    llm = llama_cpp.Llama(
        job["model"],
        n_ctx=longest,
        n_batch=longest,
        n_ubatch=longest,
        n_threads=job["threads"],
        n_threads_batch=job["threads"],
        logits_all=True,
        type_k=FP32,
        type_v=FP32,
        flash_attn=False,
        verbose=False,
    )
    answer = {
        "version": llama_cpp.__version__,
        "sequences": [run(llm, s["prompt"], s["new"]) for s in job["sequences"]],
        "texts": [llm.tokenize(text.encode(), add_bos=False, special=True) for text in job["texts"]],
    }
    Path(answer_path).write_text(json.dumps(answer))


def run(llm: Any, prompt: list[int], new: int) -> dict[str, list[Any]]:
    """Prefill, then one greedy token at a time, each with its log-probability."""
    llm.reset()
    llm.eval(prompt)
    tokens: list[int] = []
    for _ in range(new):
        tokens.append(int(llm.scores[llm.n_tokens - 1].argmax()))
        if len(tokens) < new:
            llm.eval(tokens[-1:])
    sequence = prompt + tokens
    logprobs = [float(logprob(llm.scores[i], token)) for i, token in enumerate(sequence[1:])]
    return {"tokens": tokens, "logprobs": logprobs}


def logprob(logits: Any, token: int) -> Any:
    """Log-softmax of ``logits`` [V] at ``token``, summed in fp64."""
    import numpy as np

    fine = logits.astype(np.float64)
    top = fine.max()
    return fine[token] - top - np.log(np.exp(fine - top).sum())


if __name__ == "__main__":
    main(*sys.argv[1:3])
