"""Which input projections can do without the norm in front of them, and what that takes of the memory there is."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")
sys.path.append(str(Path(__file__).parents[1]))

from toy_models import SPECS, random_model

from thinkfast.engine.cuda.folding import folded, folded_bytes
from thinkfast.engine.cuda.plan import make_cuda_plan
from thinkfast.models.fp8 import in_fp8
from thinkfast.models.spec import ModelSpec

BF16 = torch.bfloat16


@pytest.mark.parametrize(("kind", "numbers"), [("teacher", []), ("hybrid", [2]), ("pure", [1, 2])])
def test_a_folded_projection_takes_a_divided_row(kind: str, numbers: list[int]) -> None:
    """Mamba blocks' but for the first, which has its rows from the embedding."""
    model = random_model(SPECS[kind])
    copies = folded(model)
    assert list(copies) == numbers
    assert folded_bytes(model) == sum(into.weight.nbytes for into in copies.values())
    x = 100 * torch.randn(5, SPECS[kind].d_model, generator=torch.Generator().manual_seed(0))
    divided = x * (x.square().mean(1, keepdim=True) + SPECS[kind].norm_eps).rsqrt()
    for number, into in copies.items():
        block = model.blocks[number]
        torch.testing.assert_close(into(divided), block.mixer.in_proj(block.input_norm(x)))


def test_weights_that_cannot_be_folded_are_left_alone() -> None:
    pure = SPECS["pure"]
    assert not folded_bytes(in_fp8(random_model(pure)))
    assert not folded_bytes(random_model(pure).to(torch.float16))  # a residual may be larger than it can say
    assert not folded_bytes(random_model(replace(pure, ssm_bias=True)))


def test_the_plan_counts_copies_where_rows_are_many_and_room_is_left() -> None:
    spec: ModelSpec = replace(SPECS["hybrid"], d_model=512, n_heads=8, head_dim=64, d_state=16)
    packed = 2**28
    plan = make_cuda_plan(spec, 512, 256, BF16, BF16, None, packed)
    assert plan.packed_bytes == packed
    assert make_cuda_plan(spec, 128, 256, BF16, BF16, None, packed).packed_bytes == 0
    exact = make_cuda_plan(spec, 512, 256, BF16, BF16, plan.needed_bytes, packed)
    assert (exact.packed_bytes, exact.pages) == (packed, plan.pages)
    # A byte less, and it is the copies that go, not pages.
    short = make_cuda_plan(spec, 512, 256, BF16, BF16, plan.needed_bytes - 1, packed)
    assert (short.packed_bytes, short.pages) == (0, plan.pages)
