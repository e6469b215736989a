"""Small models of every kind of kernel, for compute-sanitizer to watch; test_sanitizer.py runs it on a GPU.

    PYTHONPATH=src compute-sanitizer --tool memcheck python3 tests/engine/cuda/sanitized.py

Heads and feed-forward width are Llama's, so that products are cut as theirs are; the vocabulary's logits come in three
parts.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from driving import drive
from toy_models import random_model

from thinkfast.kernels.triton import sampler
from thinkfast.models.spec import ModelSpec

BF16, F32, F8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
WIDE = ModelSpec(
    2 * sampler.BLOCK + 64, 256, 8, 2, 64, 8192, ("attention",) * 2, tie_embeddings=False, max_positions=1024
)
# Attention layers, d_state, rows, what states are kept in: own products and a mixer in one kernel, cuBLAS's and a mixer
# in two, norms folded into projections, gate and up at once, and all kinds of states.
CASES = [((0,), 16, 8, BF16), ((0,), 64, 300, BF16), ((), 16, 256, F8), ((), 128, 70, BF16), ((), 64, 2, F32)]
# Of many lengths, and enough steps that every row writes its state.
PROMPTS, STEPS = [[5, 9, 11] * (1 + i % 30) for i in range(40)], 6


def main() -> None:
    sampler._ROOM = 1
    for keep, d_state, rows, state in CASES:
        drive(random_model(WIDE.as_student(keep, d_state)).to("cuda", BF16), rows, state, PROMPTS, STEPS)
        torch.cuda.synchronize()
        print("done", keep, d_state, rows, state, flush=True)


if __name__ == "__main__":
    main()
