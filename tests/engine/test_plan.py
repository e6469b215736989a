"""What fits is known to the row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_models import SPECS

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")

from thinkfast.engine.cuda.plan import make_cuda_plan
from thinkfast.engine.plan import MemoryPlan, make_plan
from thinkfast.errors import CapacityError

BF16 = torch.bfloat16


def planned(kind: str, cuda: bool, rows: int, available: int | None) -> MemoryPlan:
    """A plan of a toy model with rows of up to 100 tokens."""
    if cuda:
        return make_cuda_plan(SPECS[kind], rows, 100, BF16, BF16, available)
    return make_plan(SPECS[kind], rows, 100, 4, available)


@given(
    kind=st.sampled_from(sorted(SPECS)), cuda=st.booleans(), mib=st.integers(1200, 20_000), rows=st.integers(1, 2000)
)
def test_the_largest_batch_fits_and_one_row_more_does_not(kind: str, cuda: bool, mib: int, rows: int) -> None:
    available = mib * 2**20
    largest = planned(kind, cuda, rows, available).largest
    assert largest is not None
    assert largest > 0
    assert planned(kind, cuda, largest, available).all_at_length
    if cuda and SPECS[kind].n_attention:  # rows may share what pages there are
        assert not planned(kind, cuda, largest + 1, available).all_at_length
    else:
        with pytest.raises(CapacityError):
            planned(kind, cuda, largest + 1, available)


@given(kind=st.sampled_from(sorted(SPECS)), cuda=st.booleans(), mib=st.integers(1200, 20_000))
def test_a_batch_that_does_not_fit_is_refused_with_the_largest_that_does(kind: str, cuda: bool, mib: int) -> None:
    available = mib * 2**20
    with pytest.raises(CapacityError, match="largest batch of such rows") as refused:
        planned(kind, cuda, 10**9, available)
    rows = int(refused.value.remedy.split("max_batch=")[1].split()[0])
    assert planned(kind, cuda, rows, available).fits
    with pytest.raises(CapacityError):
        planned(kind, cuda, rows + 1, available)


def test_where_not_even_one_row_fits_no_batch_is_named() -> None:
    with pytest.raises(CapacityError, match="needed beside the weights") as refused:
        planned("teacher", False, 4, 1000)
    assert "max_batch" not in refused.value.remedy


def test_a_plan_names_all_that_takes_memory() -> None:
    plan = planned("hybrid", True, 8, 2**34)
    text = str(plan)
    for name in ("weights", "KV, ", "SSM states", "workspace", "packed weights", "graphs and kernels", "available"):
        assert name in text
    assert f"{plan.largest:,}" in text
    assert planned("hybrid", True, 8, None).largest is None
