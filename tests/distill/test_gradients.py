"""Gradients in parts are gradients of the whole, whichever way the parts run.

Tolerance: fp64 sums in another order differ by rounding, 1e-12; a wrong weight of a part shows at order 0.1.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from thinkfast.data.corpus import Batch
from thinkfast.distill.gradients import Gradients
from thinkfast.distill.recipe import StageConfig
from thinkfast.distill.stages import make_stage

TIGHT = {"rtol": 0.0, "atol": 1e-12}


def _inside(lens: torch.Tensor) -> torch.Tensor:
    """Two of three tokens, never a sequence's last: what follows that is another sequence's first."""
    mask = torch.arange(int(lens.sum())) % 3 > 0
    mask[lens.cumsum(0) - 1] = False
    return mask


def batch() -> Batch:
    lens = torch.tensor([9, 30, 4, 17, 12])
    tokens = torch.randint(0, 40, (int(lens.sum()),), generator=torch.Generator().manual_seed(3))
    return Batch(tokens, lens, _inside(lens))


def computed(make_model: Any, name: str, parts: int, threads: int) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    teacher, student = make_model("teacher"), make_model("pure")
    stage = make_stage(StageConfig(name, 1000, 1e-3, 100), student, teacher)  # type: ignore[arg-type]
    parameters = list(student.parameters())
    student.requires_grad_(True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with Gradients(stage, parameters, parts=parts, bf16=False) as gradients:
            loss = gradients(batch())
            gradients(batch())  # overwrites, adds nothing
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    return loss, [p.grad for p in parameters]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("parts", [2, 3, 9])
@pytest.mark.parametrize("name", ["imitate", "sft"])
def test_parts_add_up_to_the_whole(name: str, parts: int, threads: int, make_model: Any) -> None:
    whole, exact = computed(make_model, name, 1, 1)
    loss, found = computed(make_model, name, parts, threads)
    torch.testing.assert_close(loss, whole, **TIGHT)
    assert sum(g is not None for g in exact) > 5
    for a, b in zip(found, exact, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **TIGHT)


@pytest.mark.parametrize("name", ["align", "imitate"])
def test_threads_change_no_bit(name: str, make_model: Any) -> None:
    alone, side_by_side = (computed(make_model, name, 2, threads) for threads in (1, 2))
    assert torch.equal(alone[0], side_by_side[0])
    for a, b in zip(alone[1], side_by_side[1], strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


def test_an_error_in_a_part_comes_out_and_leaves_no_thread(make_model: Any) -> None:
    student = make_model("pure").requires_grad_(True)
    stage = make_stage(StageConfig("sft", 1000, 1e-3, 100), student, None)
    bad = Batch(torch.full((20,), 10**6), torch.tensor([10, 10]), torch.ones(20, dtype=torch.bool))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with (
            pytest.raises(IndexError),
            Gradients(stage, list(student.parameters()), parts=2, bf16=False) as gradients,
        ):
            gradients(bad)
    finally:
        torch.set_num_threads(before)
    assert not [t for t in threading.enumerate() if t.name.startswith("part")]
