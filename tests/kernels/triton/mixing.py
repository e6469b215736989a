"""A mixer's kernel beside its reference over enough steps that every row writes its state more than once; memory that
has not been written is poisoned.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from comparing import NAN, close
from torch import Tensor

from thinkfast.kernels.triton.mixer import HOLD, MixerLayer, MixerRows, MixerState, Undivided, mix_reference

# projected, layer, state, rows, out, the layer's number, what has yet to be divided.
Mix = Callable[[Tensor, MixerLayer, MixerState, MixerRows, Tensor, int, Undivided | None], None]


def mixer(
    heads: int, kv: int, p: int, n: int, ssm: torch.dtype, dtype: torch.dtype, device: torch.device, slots: int
) -> tuple[MixerLayer, MixerState]:
    g = torch.Generator().manual_seed(heads * n)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=g) * scale).to(device)

    channels = kv * p + kv * n + heads * n
    layer = MixerLayer(
        random(4, channels, scale=0.5), random(channels, scale=0.1), -torch.rand(heads, generator=g).to(device) - 0.02,
        random(heads) - 2, 1 + random(heads, scale=0.1), 1 + random(heads * p, scale=0.1), kv, 1e-5,
    )  # fmt: skip
    state = random(slots, heads, p, n, scale=0.3)
    scale = state.abs().amax((2, 3)) / 448
    if ssm == torch.float8_e4m3fn:
        state = state / scale[..., None, None]
    held = torch.full((slots, HOLD, kv * (p + n)), NAN, device=device).to(dtype)
    return layer, MixerState(
        state.to(ssm),
        scale,
        random(slots, 4, channels).to(dtype),
        held,
        torch.full((slots, HOLD, heads), NAN, device=device),
    )


def follow(
    kernel: Mix,
    sizes: tuple[int, int, int, int],
    ssm: torch.dtype,
    dtype: torch.dtype,
    count: int,
    wide: int,
    bound: float,
    device: torch.device,
) -> None:
    """``kernel`` with ``count`` rows of heads, key-value heads, P and N within ``bound`` of the reference, which keeps
    the state in fp32 throughout. Rows come normed, or as the projection of a residual ``wide`` entries wide.
    """
    heads, kv, p, n = sizes
    slots = count + 3
    active = torch.randperm(slots, generator=torch.Generator().manual_seed(2))[:count].tolist()
    layer, state = mixer(heads, kv, p, n, ssm, dtype, device, slots)
    plain = state.ssm.float() * (state.scale[..., None, None] if ssm == torch.float8_e4m3fn else 1)
    want_state = MixerState(plain, state.scale, state.conv.clone(), state.held.clone(), state.steps)
    rows = MixerRows(
        torch.tensor(active, dtype=torch.int32, device=device), torch.arange(1, slots + 1, device=device),
        torch.ones(slots, dtype=torch.int64, device=device), torch.arange(slots, device=device) * 911 + 5,
    )  # fmt: skip
    g = torch.Generator().manual_seed(1)
    width = heads * p + kv * (p + n) + heads * n + heads
    for _ in range(2 * HOLD + 2):
        projected = torch.randn(len(active), width, generator=g).to(device)
        undivided = None
        if wide:
            residual = torch.randn(len(active), wide, generator=g) * torch.rand(len(active), 1, generator=g) * 9
            undivided = Undivided(residual.to(device, dtype), 1e-5)
            projected *= undivided.residual.float().square().mean(1, keepdim=True).sqrt()
        projected = projected.to(dtype)
        out, want = (torch.full((len(active), heads * p), NAN, dtype=dtype, device=device) for _ in range(2))
        kernel(projected, layer, state, rows, out, 1, undivided)
        mix_reference(projected, layer, want_state, rows, want, 1, undivided)
        close(out, want, bound)
        rows.position.add_(1)
        rows.drawn.add_(1)
    # Which order squares are added up in shows in the last bit, which is up to 2^-7 of a number in bf16.
    last = 2**-7 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(state.conv, want_state.conv, rtol=last if wide else 0, atol=0)
