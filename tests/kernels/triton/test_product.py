"""Products of few rows against torch, over widths that no tile divides, with what lies behind poisoned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")

from comparing import NAN, PRODUCT, close

from thinkfast.kernels.triton import product as module
from thinkfast.kernels.triton.launch import shared_memory
from thinkfast.kernels.triton.product import MOST_ROWS, Cut, Cuts, can_cut, cuts, product, product_reference
from thinkfast.models.fp8 import quantize_rows

# The interpreter turns arrays of one element into numbers, of which numpy 2.3 warns.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ON_GPU = torch.cuda.is_available()
# Rows, outputs, inputs. The interpreter takes a tenth of a second for each program, and cannot multiply bf16.
CASES = [(3, 40, 80)]
if ON_GPU:
    CASES = [(rows, n, k) for rows in (1, 5, 16, 17, 64, 65, 128) for n, k in ((3232, 2048), (200, 576), (1136, 896))]
    CASES += [(64, 2048, 8192), (1, 896, 4864), (8, 5152, 2048)]
DTYPE = torch.bfloat16 if ON_GPU else torch.float32


def some_cuts(rows: int) -> Cuts:
    """The step's on a GPU; tiles of a few programs for the interpreter."""
    one, shares = Cut(16, 32, 32, 1, 4, 2), Cut(16, 32, 32, 2, 4, 2)
    return cuts(rows) if ON_GPU else Cuts(one, shares, one, shares, one)


@pytest.mark.parametrize(("rows", "n", "k"), CASES)
def test_product(rows: int, n: int, k: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(rows * n + k)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, DTYPE)

    # Lines behind the last row are there in the step's buffers, and hold whatever was there.
    x = torch.full((rows + 3, k), NAN, device=device, dtype=DTYPE)
    x[:rows] = random(rows, k)
    weight, bias, both = random(n, k), random(n), random(2 * n, k) * k**-0.5
    cut = some_cuts(rows)
    for one, w, b, gated in (
        (cut.into, weight, bias, False),
        (cut.out, weight, bias, False),
        (cut.down, weight, None, False),
        (cut.head, weight, None, False),
        (cut.gate_up, both, None, True),
    ):
        check(x[:rows], w, one, b, gated)
    for one, w, gated in ((cut.into, weight, False), (cut.down, weight, False), (cut.gate_up, both, True)):
        (eight, of_x), (narrow, of_weight) = quantize_rows(x[:rows]), quantize_rows(w)
        check(eight, narrow, one, None, gated, (of_x, of_weight.t().contiguous()))


def check(
    x: Tensor, w: Tensor, cut: Cut | None, bias: Tensor | None, gated: bool, scales: tuple[Tensor, Tensor] | None = None
) -> None:
    """One product of every kind against its reference."""
    assert cut is not None
    rows, n = x.shape[0], w.shape[0] // (2 if gated else 1)
    shape = (cut.shares, rows, n) if cut.shares > 1 else (rows, n)
    kind = torch.float32 if cut.shares > 1 else DTYPE
    found, want = (torch.full(shape, NAN, device=x.device, dtype=kind) for _ in range(2))
    product(x, w, found, cut, bias, gated, scales)
    product_reference(x, w, want, cut, bias, gated, scales)
    close(*(each.sum(0) if cut.shares > 1 else each for each in (found, want)), PRODUCT)


def test_many_rows_odd_widths_and_wide_numbers_are_left_to_the_library(device: torch.device) -> None:
    assert cuts(MOST_ROWS).into is not None
    assert cuts(MOST_ROWS + 1) == Cuts()
    weight = torch.zeros(8, 64, dtype=torch.float32, device=device)
    assert can_cut(weight, 64) is not ON_GPU  # tensor cores on a GPU, anything under the interpreter
    assert not can_cut(weight, 64, 63)


@pytest.mark.parametrize(("room", "cut"), [(232448, True), (101376, False)])
def test_a_chip_with_little_shared_memory_leaves_them_to_the_library(
    room: int, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of a Hopper, and of a desktop Blackwell."""
    for name, value in {
        "interpreting": lambda: False,
        "overlap": lambda _: True,
        "shared_memory": lambda _: room,
    }.items():
        monkeypatch.setattr(module, name, value)
    assert can_cut(torch.zeros(8, 64, dtype=torch.bfloat16), 64) is cut
    if ON_GPU:
        assert shared_memory(torch.device("cuda", 0)) >= 232448
