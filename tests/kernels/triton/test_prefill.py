"""The prefill kernels against a loop over tokens, on ragged sequences of every awkward length."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")

from thinkfast.kernels.triton import ssd
from thinkfast.kernels.triton.mixer import MixerLayer
from thinkfast.kernels.triton.ssd import ssd_prefill, ssd_prefill_reference

# The interpreter turns arrays of one element into numbers, of which numpy 2.3 warns.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
# Triton's interpreter multiplies bf16 matrices as integers, and large ones for minutes.
ON_GPU = torch.cuda.is_available()


@pytest.mark.parametrize(
    ("heads", "kv", "p", "n"),
    [(4, 2, 16, 16), (2, 2, 16, 128), (3, 1, 128, 16), *([(2, 1, 64, 64), (2, 1, 64, 128)] if ON_GPU else [])],
)
@pytest.mark.parametrize("dtype", [torch.float32, *([torch.bfloat16] if ON_GPU else [])])
@pytest.mark.parametrize("many", [10**9, 0])
def test_ssd_prefill(
    many: int, heads: int, kv: int, p: int, n: int, dtype: torch.dtype, device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Walks cut as where few programs run, and as where many do."""
    monkeypatch.setattr(ssd, "_MANY", many)
    lens = [1, 2, 3, 4, 5, 63, 64, 65] + ([1000] if device.type == "cuda" else [])
    g = torch.Generator().manual_seed(heads)
    channels = kv * p + kv * n + heads * n
    layer = MixerLayer(
        0.5 * torch.randn(4, channels, generator=g), 0.1 * torch.randn(channels, generator=g),
        -torch.rand(heads, generator=g) - 0.02, torch.randn(heads, generator=g) - 2, torch.rand(heads, generator=g),
        1 + 0.1 * torch.randn(heads * p, generator=g), kv, 1e-5,
    )  # fmt: skip
    names = ("taps", "conv_bias", "rates", "dt_bias", "skip", "norm")
    layer = MixerLayer(*(getattr(layer, name).to(device) for name in names), kv, 1e-5)
    projected = torch.randn(sum(lens), heads * p + channels + heads, generator=g).to(device, dtype)
    sizes = torch.tensor(lens, device=device)
    starts = sizes.cumsum(0) - sizes
    positions = torch.cat([torch.arange(length) for length in lens]).to(device)
    found, want = (
        run(projected, layer, starts, sizes, positions, (kv, p, n)) for run in (ssd_prefill, ssd_prefill_reference)
    )
    for a, b in zip(found, want, strict=True):
        assert (a.float() - b.float()).norm() / b.float().norm() < (2e-5 if dtype == torch.float32 else 1.5e-2)
