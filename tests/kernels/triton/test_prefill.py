"""The prefill kernels against a loop over tokens, on ragged sequences of every awkward length."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")

from comparing import close

from thinkfast.kernels.triton import ssd
from thinkfast.kernels.triton.mixer import MixerLayer, MixerState
from thinkfast.kernels.triton.ssd import Prompts, ssd_prefill, ssd_prefill_reference

# The interpreter turns arrays of one element into numbers, of which numpy 2.3 warns.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
# Triton's interpreter multiplies bf16 matrices as integers, and large ones for minutes.
ON_GPU = torch.cuda.is_available()


F32, BF16, F8 = torch.float32, torch.bfloat16, torch.float8_e4m3fn
# Programs of which few run, or many, and states.
KINDS = [(10**9, F32), (0, F32), (0, BF16), (0, F8)]
SIZES = [(4, 2, 16, 32), (2, 2, 16, 128), (3, 1, 128, 16), (7, 1, 16, 16)]
CASES = [(*kind, *sizes, F32) for kind in KINDS for sizes in SIZES]
if ON_GPU:
    # Heads and states of real models, groups of up to 8.
    SIZES = [(4, 2, 16, 16), *SIZES, (2, 1, 64, 64), (2, 1, 64, 128), (8, 1, 64, 32), (4, 1, 128, 128), (16, 2, 64, 16)]
    # The other groups, and heads of 128 with the other states.
    SIZES += [(5, 1, 64, 16), (6, 1, 128, 32), (12, 2, 64, 64), (7, 1, 64, 128), (14, 2, 128, 64)]
    CASES = [(*kind, *sizes, dtype) for kind in KINDS for sizes in SIZES for dtype in (F32, BF16)]


@pytest.mark.parametrize(("many", "state", "heads", "kv", "p", "n", "dtype"), CASES)
def test_ssd_prefill(
    many: int, state: torch.dtype, heads: int, kv: int, p: int, n: int, dtype: torch.dtype, device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Walks cut as where few programs run, and as where many do; states of every dtype, in slots that were used."""
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
    sequence = torch.arange(len(lens), device=device).repeat_interleave(sizes)
    # Slots in another order than prompts, and one that belongs to nobody; whoever was there before leaves traces.
    slots = torch.randperm(len(lens) + 1, generator=g)[: len(lens)].to(device)
    prompts = Prompts.of(starts, sizes, positions, sequence, slots, 4)

    def run(prefill: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, ...]:
        shapes = {"ssm": (heads, p, n), "scale": (heads,), "conv": (4, channels), "held": (1,), "steps": (1,)}
        dtypes = {"ssm": state, "conv": dtype}
        into = MixerState(
            **{
                name: torch.full((len(lens) + 1, *shape), 7.0, device=device).to(dtypes.get(name, torch.float32))
                for name, shape in shapes.items()
            }
        )
        y = prefill(projected, layer, prompts, into)
        # The ring's next line is whatever it was: the kernel leaves it alone, and a step overwrites it.
        conv = into.conv.clone()
        conv[slots, sizes % 4] = 0
        ssm = into.ssm.float() * (into.scale[..., None, None] if state == torch.float8_e4m3fn else 1)
        return y.float(), conv.float(), ssm

    # A state in eight bits may round to a neighbour, an eighth away, where the kernel's sums differ in the last digit.
    rough = {torch.float32: 2e-5, torch.bfloat16: 2e-3, torch.float8_e4m3fn: 2e-2}[state]
    for a, b, own in zip(run(ssd_prefill), run(ssd_prefill_reference), (0.0, 0.0, rough), strict=True):
        close(a, b, max(own, 2e-5 if dtype == torch.float32 else 1.5e-2))
