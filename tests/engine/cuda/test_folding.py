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

from thinkfast.engine.cuda import folding
from thinkfast.engine.cuda.folding import Folded, folded, folded_bytes
from thinkfast.engine.cuda.plan import make_cuda_plan
from thinkfast.models.fp8 import in_fp8
from thinkfast.models.spec import ModelSpec

BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models here are fp32 on a CPU, also where there is a GPU: as if gated.py could read their weights."""
    monkeypatch.setattr(folding, "can_cut", lambda weight, *widths: True)


def test_gates_and_ups_that_are_not_multiplied_at_once_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(SPECS["pure"])
    first, _ = folded_bytes(model)
    monkeypatch.setattr(folding, "can_cut", lambda weight, *widths: False)
    assert folded_bytes(model) == (first, 0)
    assert all(copy.gate_up is None for copy in folded(model, 10**9))


@pytest.mark.parametrize(("kind", "numbers"), [("teacher", []), ("hybrid", [2]), ("pure", [1, 2])])
def test_a_folded_weight_takes_a_divided_row(kind: str, numbers: list[int]) -> None:
    """Input projections of Mamba blocks but for the first, whose rows come from the embedding; gates and ups of all."""
    spec, model = SPECS[kind], random_model(SPECS[kind])
    first, second = folded_bytes(model)
    copies = folded(model, first + second)
    inputs = {number: copy.into for number, copy in enumerate(copies) if copy.into is not None}
    assert list(inputs) == numbers
    assert first == sum(into.weight.nbytes for into in inputs.values())
    x = 100 * torch.randn(5, spec.d_model, generator=torch.Generator().manual_seed(0))
    divided = x * (x.square().mean(1, keepdim=True) + spec.norm_eps).rsqrt()
    for number, into in inputs.items():
        block = model.blocks[number]
        torch.testing.assert_close(into(divided), block.mixer.in_proj(block.input_norm(x)))
    ups = [copy.gate_up for copy in copies if copy.gate_up is not None]
    assert second == sum(up.nbytes for up in ups)
    for block, up in zip(model.blocks, ups, strict=True):
        torch.testing.assert_close(divided @ up.T, block.mlp.gate_up(block.post_norm(x)))


def test_a_kind_for_which_there_is_no_room_is_left_out() -> None:
    model = random_model(SPECS["pure"])
    first, second = folded_bytes(model)
    assert all(copy == Folded() for copy in folded(model, first - 1))
    one = folded(model, first + second - 1)
    assert [copy.into is None for copy in one] == [True, False, False]
    assert all(copy.gate_up is None for copy in one)


def test_weights_that_cannot_be_folded_are_left_alone() -> None:
    pure = SPECS["pure"]
    nothing = (0, 0)
    assert folded_bytes(in_fp8(random_model(pure))) == nothing
    assert folded_bytes(random_model(pure).to(torch.float16)) == nothing  # too small for what is not divided
    assert folded_bytes(random_model(replace(pure, ssm_bias=True))) == nothing
    assert all(copy == Folded() for copy in folded(random_model(replace(pure, ssm_bias=True)), 10**9))


def test_the_plan_counts_copies_where_rows_are_many_and_room_is_left() -> None:
    spec: ModelSpec = replace(SPECS["hybrid"], d_model=512, n_heads=8, head_dim=64, d_state=16)

    def planned(rows: int, available: int | None, packed: tuple[int, ...] = (2**22, 2**23)) -> tuple[int, int]:
        plan = make_cuda_plan(spec, rows, 256, BF16, BF16, available, packed)
        return plan.packed_bytes, plan.pages

    both = 2**22 + 2**23
    needed = make_cuda_plan(spec, 512, 256, BF16, BF16, None).needed_bytes
    _, pages = planned(512, None)
    assert planned(512, None)[0] == both
    assert planned(128, None)[0] == 0
    # A byte less, and it is copies that go, not pages.
    assert planned(512, needed + both) == (both, pages)
    assert planned(512, needed + both - 1) == (2**22, pages)
    assert planned(512, needed + 2**22 - 1) == (0, pages)
    # However much room: none that takes more than a fiftieth of it.
    room = 2**36
    assert planned(512, room, (room // 50, 1)) == (room // 50 + 1, pages)
    assert planned(512, room, (room // 50 + 1, 1)) == (0, pages)
