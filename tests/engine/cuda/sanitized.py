"""Small models of every kind of kernel, for compute-sanitizer to watch; test_sanitizer.py runs it on a GPU.

    PYTHONPATH=src compute-sanitizer --tool memcheck python3 tests/engine/cuda/sanitized.py

Heads and feed-forward width are Llama's, so that products are cut as theirs are; the vocabulary's logits come in three
parts.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import triton
import triton.language as tl

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from driving import PARAMS, drive
from toy_models import random_model

from thinkfast.engine.request import SamplingParams
from thinkfast.kernels.triton import sampler
from thinkfast.models.decoder import Decoder
from thinkfast.models.fp8 import in_fp8
from thinkfast.models.spec import ModelSpec

BF16, F32, F8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
WIDE = ModelSpec(
    2 * sampler.BLOCK + 64, 256, 8, 2, 64, 8192, ("attention",) * 2, tie_embeddings=False, max_positions=1024
)
FILTERS = (replace(PARAMS, top_k=5), replace(PARAMS, top_p=0.7), replace(PARAMS, min_p=0.1, top_p=0.9, top_k=20))


@dataclass(frozen=True, slots=True)
class Case:
    """The attention layers that are kept, d_state, rows, what states are kept in; how rows sample, in turn; whether
    weights are in eight bits; heads and their dim.
    """

    keep: tuple[int, ...]
    d_state: int
    rows: int
    state: torch.dtype
    mix: tuple[SamplingParams, ...] = (PARAMS,)
    fp8: bool = False
    heads: tuple[int, int] = (8, 64)

    def model(self) -> Decoder:
        """In bf16 where weights are not in eight bits, on the CPU."""
        heads, p = self.heads
        spec = replace(WIDE, n_heads=heads, n_kv_heads=heads // 4, head_dim=p).as_student(self.keep, self.d_state)
        model = random_model(spec).to(BF16)
        return in_fp8(model) if self.fp8 else model


# Own products and a mixer in one kernel of Triton's or CUDA C++, cuBLAS's and a mixer in two, norms folded into
# projections, gate and up at once, and all kinds of states; then, of few rows because all takes so long, rows with
# filters, weights in eight bits, and the largest heads and states.
CASES = [
    Case((0,), 16, 8, BF16), Case((), 16, 40, BF16), Case((0,), 64, 300, BF16), Case((), 16, 256, F8),
    Case((), 128, 70, BF16), Case((), 64, 2, F32), Case((), 16, 3, BF16, mix=FILTERS),
    Case((0,), 16, 5, BF16, fp8=True), Case((0,), 128, 6, BF16, heads=(4, 128)),
]  # fmt: skip
# Of many lengths, and enough steps that every row writes its state.
PROMPTS, STEPS = [[5, 9, 11] * (1 + i % 30) for i in range(40)], 6


@triton.jit
def _write(OUT, place):  # type: ignore[no-untyped-def]  # noqa: ANN001
    tl.store(OUT + place, 1.0)


def write_beyond() -> None:
    """One number behind the last: what the tool has to find, or it would find nothing of the rest either."""
    _write[(1,)](torch.zeros(1000, device="cuda"), 1000)
    torch.cuda.synchronize()
    print("done")


def main() -> None:
    if sys.argv[1:] == ["beyond"]:
        write_beyond()
        return
    sampler._ROOM = 1
    for case in CASES:
        drive(case.model().to("cuda"), case.rows, case.state, PROMPTS, STEPS, case.mix)
        torch.cuda.synchronize()
        print("done", case, flush=True)


if __name__ == "__main__":
    main()
