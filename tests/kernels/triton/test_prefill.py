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
    layer, projected = made(sum(lens), heads, kv, p, n, dtype, device)
    # Slots in another order than prompts, and one that belongs to nobody; whoever was there before leaves traces.
    slots = torch.randperm(len(lens) + 1, generator=torch.Generator().manual_seed(heads))[: len(lens)].to(device)
    prompts = laid(lens, slots)

    def run(prefill: Prefill) -> tuple[torch.Tensor, ...]:
        into = used(len(lens) + 1, heads, p, n, layer, state, dtype)
        return seen(prefill(projected, layer, prompts, into), into, slots, prompts.lens)

    for a, b, bound in zip(run(ssd_prefill), run(ssd_prefill_reference), bounds(state, dtype), strict=True):
        close(a, b, bound)


Prefill = Callable[[torch.Tensor, MixerLayer, Prompts, MixerState], torch.Tensor]


def made(
    tokens: int, heads: int, kv: int, p: int, n: int, dtype: torch.dtype, device: torch.device
) -> tuple[MixerLayer, torch.Tensor]:
    """A layer's weights, and its projection of ``tokens``."""
    g = torch.Generator().manual_seed(heads)
    channels = kv * p + kv * n + heads * n
    weights = (
        0.5 * torch.randn(4, channels, generator=g), 0.1 * torch.randn(channels, generator=g),
        -torch.rand(heads, generator=g) - 0.02, torch.randn(heads, generator=g) - 2, torch.rand(heads, generator=g),
        1 + 0.1 * torch.randn(heads * p, generator=g),
    )  # fmt: skip
    projected = torch.randn(tokens, heads * p + channels + heads, generator=g)
    return MixerLayer(*(weight.to(device) for weight in weights), kv, 1e-5), projected.to(device, dtype)


def laid(lens: list[int], slots: torch.Tensor, before: int = 0) -> Prompts:
    sizes = torch.tensor(lens, device=slots.device)
    positions = torch.cat([torch.arange(before, before + length) for length in lens]).to(slots.device)
    sequence = torch.arange(len(lens), device=slots.device).repeat_interleave(sizes)
    return Prompts.of(sizes.cumsum(0) - sizes, sizes, sequence, positions, slots, 4, before)


def used(
    slots: int, heads: int, p: int, n: int, layer: MixerLayer, state: torch.dtype, dtype: torch.dtype
) -> MixerState:
    """Slots that others have left."""
    shapes = {"ssm": (heads, p, n), "scale": (heads,), "conv": layer.taps.shape, "held": (1,), "steps": (1,)}
    dtypes, device = {"ssm": state, "conv": dtype}, layer.taps.device
    return MixerState(
        **{
            name: torch.full((slots, *shape), 7.0, device=device).to(dtypes.get(name, torch.float32))
            for name, shape in shapes.items()
        }
    )


def seen(y: torch.Tensor, into: MixerState, slots: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The output, and what is left behind."""
    # The ring's next line is whatever it was: the kernel leaves it alone, and a step overwrites it.
    conv = into.conv.clone()
    conv[slots, lens % 4] = 0
    ssm = into.ssm.float() * (into.scale[..., None, None] if into.ssm.dtype == F8 else 1)
    return y.float(), conv.float(), ssm


def bounds(state: torch.dtype, dtype: torch.dtype) -> tuple[float, ...]:
    # A state in eight bits may round to a neighbour, an eighth away, where the kernel's sums differ in the last digit.
    rough = {F32: 2e-5, BF16: 2e-3, F8: 2e-2}[state]
    product = 2e-5 if dtype == F32 else 1.5e-2
    return product, product, max(rough, product)


@pytest.mark.parametrize(("many", "state", "heads", "kv", "p", "n", "dtype"), CASES)
def test_a_prompt_in_pieces(
    many: int, state: torch.dtype, heads: int, kv: int, p: int, n: int, dtype: torch.dtype, device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Behind 65 tokens, and behind 129: each piece goes on from what the one before has left in its slot, whatever
    that is kept in; in fp32 they are the whole prompt.
    """
    monkeypatch.setattr(ssd, "_MANY", many)
    lens = [65, 64, 3] if device.type == "cpu" else [65, 1024, 1]
    layer, projected = made(sum(lens), heads, kv, p, n, dtype, device)
    slots, end = torch.tensor([2], device=device), torch.tensor([sum(lens)], device=device)

    def run(prefill: Prefill, lens: list[int]) -> tuple[torch.Tensor, ...]:
        into, outs, before = used(4, heads, p, n, layer, state, dtype), [], 0
        for piece in projected.split(lens):
            outs.append(prefill(piece, layer, laid([len(piece)], slots, before), into))
            before += len(piece)
        return seen(torch.cat(outs), into, slots, end)

    # What rounds otherwise between two pieces is read by all tokens behind. Triton's interpreter cuts bf16 off, and in
    # fp8 makes 16 of what rounds up to 32: one number in fifty.
    product, conv, rough = bounds(state, dtype)
    rough *= 2 if device.type == "cuda" else 4
    allowed = (max(product, rough), conv, rough)
    for a, b, bound in zip(run(ssd_prefill, lens), run(ssd_prefill_reference, lens), allowed, strict=True):
        close(a, b, bound)
    if state == F32:
        for a, b, bound in zip(run(ssd_prefill, lens), run(ssd_prefill, [sum(lens)]), allowed, strict=True):
            close(a, b, bound)
