"""Gate, up and SwiGLU in one product against torch, over widths that no tile divides, what lies behind poisoned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")

from comparing import PRODUCT, close

from thinkfast.kernels.triton.gated import TILE, fills, gated
from thinkfast.kernels.triton.norm import inverse_rms
from thinkfast.kernels.triton.product import Cut, product_reference

# The interpreter turns arrays of one element into numbers, of which numpy 2.3 warns.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ON_GPU = torch.cuda.is_available()
# Rows, outputs, inputs. The interpreter takes a tenth of a second for each program, and cannot multiply bf16.
CASES = [(21, 40, 80), (270, 20, 32)]
if ON_GPU:
    CASES = [(rows, n, k) for rows in (1, 129, 256, 300, 512, 1024) for n, k in ((8192, 2048), (200, 576), (4864, 896))]
    CASES += [(4173, 8192, 2048), (2049, 200, 576)]
SMALL = Cut(16, 16, 32, 1, 4, 2)
DTYPE = torch.bfloat16 if ON_GPU else torch.float32


@pytest.mark.parametrize("undivided", [False, True])
@pytest.mark.parametrize(("rows", "width", "k"), CASES)
def test_gated(rows: int, width: int, k: int, undivided: bool, device: torch.device) -> None:
    """Of rows that are normed, and of rows that are divided behind the product."""
    generator = torch.Generator().manual_seed(rows * width + k)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, DTYPE)

    # Lines behind the last row are there in the step's buffers, and hold whatever was there.
    x = torch.full((rows + 3, k), float("nan"), device=device, dtype=DTYPE)
    x[:rows] = random(rows, k)
    weight = random(2 * width, k) * k**-0.5
    out = torch.full((rows + 3, width), 7.0, device=device, dtype=DTYPE)
    want = torch.empty(rows, width, device=device, dtype=DTYPE)
    normed, inverse = x[:rows], None
    if undivided:
        wider = x * (3 * torch.rand(rows + 3, 1, generator=generator).to(device, DTYPE) + 0.1)
        inverse = torch.full((rows + 3,), float("nan"), device=device)
        normed = torch.rms_norm(wider[:rows].float(), (k,), None, 1e-5)
        # One behind another, as in a step: the product begins before the kernel in front has ended.
        x.copy_(wider)
        inverse_rms(x[:rows], inverse[:rows], 1e-5)
    gated(x[:rows], weight, out[:rows], TILE if ON_GPU else SMALL, inverse)
    product_reference(normed, weight, want, TILE, gated=True)
    close(out[:rows], want, PRODUCT)
    assert (out[rows:] == 7.0).all()


def test_tiles_that_leave_the_chip_idle_are_left_to_the_library() -> None:
    """Four programs at a time: four tiles fill them, five do not, nor does a tile that is half empty."""
    device, tile = torch.device("cpu"), SMALL
    if ON_GPU:
        device, tile = torch.device("cuda"), TILE
        busy = torch.cuda.get_device_properties(device).multi_processor_count
    else:
        busy = 4
    one = tile.outputs
    assert fills(tile.rows, busy * one, device, tile)
    assert not fills(tile.rows, (busy + 1) * one, device, tile)
    assert not fills(tile.rows // 2, busy * one, device, tile)
    assert fills(2 * tile.rows, busy * one, device, tile)
