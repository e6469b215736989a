"""Prefill, forks and steps of small models of every kind of kernel, uncaptured, for compute-sanitizer to watch.

    PYTHONPATH=src compute-sanitizer --tool memcheck python3 tests/engine/cuda/sanitized.py

Run by test_sanitizer.py on a GPU. Heads and feed-forward width are Llama's, so that products are cut as theirs are; the
vocabulary's logits come in three parts.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))

from toy_models import random_model

from thinkfast.engine.cuda.folding import folded_bytes
from thinkfast.engine.cuda.plan import make_cuda_plan
from thinkfast.engine.cuda.runner import CudaRunner
from thinkfast.engine.request import SamplingParams
from thinkfast.engine.rows import RowStart
from thinkfast.engine.runner import Start
from thinkfast.kernels.triton import sampler
from thinkfast.models.spec import ModelSpec

BF16, F32, F8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
WIDE = ModelSpec(
    2 * sampler.BLOCK + 64, 256, 8, 2, 64, 8192, ("attention",) * 2, tie_embeddings=False, max_positions=1024
)
PARAMS = SamplingParams(temperature=0.8, ignore_eos=True)
# Attention layers, d_state, rows, what states are kept in: own products and a mixer in one kernel, cuBLAS's and a mixer
# in two, norms folded into projections, and all kinds of states.
CASES = [((0,), 16, 8, BF16), ((0,), 64, 300, BF16), ((), 16, 260, F8), ((), 128, 70, BF16), ((), 64, 2, F32)]
STEPS, PROMPTS = 6, 40


def watched(spec: ModelSpec, rows: int, state: torch.dtype, weights: torch.dtype, device: str) -> None:
    """Prompts of many lengths, one of them forked to ``rows`` rows, and enough steps that each writes its state."""
    model = random_model(spec).to(device, weights)
    plan = make_cuda_plan(spec, rows, 256, weights, state, None, folded_bytes(model))
    runner = CudaRunner(model, plan, frozenset({3}), capture=False)
    for prompt in runner.prefill([[5, 9, 11] * (1 + i % 30) for i in range(min(PROMPTS, plan.prompts))]):
        runner.close(prompt)
    (prompt,) = runner.prefill([[5, 9, 11]])
    runner.fork([Start(prompt, tuple(RowStart(i, PARAMS, 9, 3) for i in range(rows)), last=True)])
    for _ in range(STEPS):
        runner.step()


def main() -> None:
    sampler._ROOM = 1
    for keep, d_state, rows, state in CASES:
        watched(WIDE.as_student(keep, d_state), rows, state, BF16, "cuda")
        torch.cuda.synchronize()
        print("done", keep, d_state, rows, state, flush=True)


if __name__ == "__main__":
    main()
