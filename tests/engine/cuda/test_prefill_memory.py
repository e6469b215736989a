"""What a prefill holds at once is what the plan counts for it, whatever the prompts' lengths."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")
from triton.runtime.jit import KernelInterface

sys.path.append(str(Path(__file__).parents[1]))

from holding import LENGTHS, SPECS, Held
from toy_models import random_model

from thinkfast.engine.cuda import prefill
from thinkfast.engine.cuda.plan import make_cuda_plan, prefill_bytes
from thinkfast.engine.cuda.runner import CudaRunner
from thinkfast.kernels.triton import gated, norm, rounding, ssd, swiglu
from thinkfast.models.attention import Attention
from thinkfast.models.fp8 import Fp8Linear, in_fp8

# The interpreter turns arrays of one element into numbers, of which numpy 2.3 warns.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
F32 = torch.float32


class Unlaunched:
    """In a kernel's place: what wrappers take for their results is all that matters here."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: None


def nothing_gathered(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: Any) -> torch.Tensor:
    return torch.empty_like(q)


def nothing_multiplied(self: Fp8Linear, x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.new_empty(x.shape[0], self.weight.shape[0], dtype=dtype)


@pytest.fixture(params=["gate and up at once", "one by one"])
def no_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    # Which of the two a GPU takes depends on dtype and sizes.
    monkeypatch.setattr(prefill, "serves", lambda rows, weight: request.param == "gate and up at once")
    # A GPU's has no copies of keys for every head of a group, as a CPU's may, and in half precision no masks.
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", nothing_gathered)
    monkeypatch.setattr(Attention, "_masked", lambda self, q, k, v: torch.empty_like(q))
    monkeypatch.setattr(Fp8Linear, "product", nothing_multiplied)
    replaced = 0
    for module in (gated, norm, rounding, ssd, swiglu):
        for name, value in vars(module).items():
            if isinstance(value, KernelInterface):
                monkeypatch.setattr(module, name, Unlaunched())
                replaced += 1
    assert replaced >= 5


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_a_prefill_holds_no_more_than_is_planned(name: str, fp8: bool, lengths: str) -> None:
    spec, lens = SPECS[name], LENGTHS[lengths]
    model = random_model(spec).to("cuda" if torch.cuda.is_available() else "cpu")
    model = in_fp8(model) if fp8 else model
    plan = make_cuda_plan(spec, len(lens), max(lens) + 1, F32, F32, None)
    runner = CudaRunner(model, plan, frozenset(), capture=False)
    prompts = [[i % spec.vocab_size for i in range(length)] for length in lens]
    with Held() as held:
        handles = runner.prefill(prompts)
    assert len(handles) == len(lens)
    planned = sum(lens) * prefill_bytes(spec, F32.itemsize)
    logits = len(lens) * spec.vocab_size * F32.itemsize
    # Half a percent for numbers of one prompt or of one page, of which there are few.
    assert held.most - logits < 1.005 * planned
    # What is planned for nothing is taken from rows: that is the padding of lengths that are alike.
    assert held.most > (0.32 if lengths in ("alike", "one") else 0.49) * planned


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(("pages", "piece"), [(46, 1000), (250, 64)])
@pytest.mark.parametrize("name", SPECS)
def test_the_last_piece_of_a_prompt_holds_no_more_than_is_planned(name: str, pages: int, piece: int, fp8: bool) -> None:
    """Behind as many pages: all that the plan has beside a pass's own is what it reads of them."""
    spec, length = replace(SPECS[name], max_positions=1 << 15), pages * 64 + piece + 2
    model = random_model(spec).to("cuda" if torch.cuda.is_available() else "cpu")
    model = in_fp8(model) if fp8 else model
    plans = [make_cuda_plan(spec, 1, length, F32, F32, None) for length in (2, length)]
    runner = CudaRunner(model, plans[1], frozenset(), capture=False)
    (handle,) = runner.prefill([[1] * 64 * pages])
    with Held() as held:
        runner.extend(handle, [2] * piece)
    behind = plans[1].work_bytes - plans[0].work_bytes
    assert (behind > 0) is (spec.n_attention > 0)
    logits = spec.vocab_size * F32.itemsize
    assert held.most - logits < 1.005 * (piece * prefill_bytes(spec, F32.itemsize) + behind)
