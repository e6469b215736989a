"""One Mamba step between its two projections, in two kernels: convolution, SiLU and gates; state, skip, gate and norm.

The state is read in every step and written in every HOLD-th only. In between, the newest inputs wait in a short ring
and are added to what is read from memory: with S the state as last written, n inputs held and t_j their decays up to
now, y = exp(sum of all) S C + sum_j exp(t_j) dt_j (C . B_j) x_j. That is the chunked form of the recurrence with
chunks of at most HOLD tokens, moves 1 + 1 / HOLD states a step in place of 2, and rounds a narrow state HOLD times
less often. Rows write in different steps, so that every step moves as much.

What is written may be narrower than it is computed: bf16 and fp8 (e4m3 with a scale a head) are rounded at random in
proportion to the two neighbours, because rounding to the nearest loses every input below half a step of the state.

Legend: B rows, S slots, H heads, K key-value heads, G = H / K, P head dim, N state, W convolution width,
C conv channels, D = HOLD inputs held.

Of many rows the second kernel touches the state and little else: with everything in one, rearranging small vectors
between the lines and columns of the state's tile took three times as long as the state itself at 512 rows. Of few rows
one kernel does it all, a head a program, because a launch costs more than what a group's heads then do over and over.
The kernels are in mixer_kernels.py.

Usage: ``mix(projected, layer, state, rows, work, out)``.
Source: state-space duality, arXiv 2405.21060; the form is models/mixers.py's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from thinkfast.kernels.triton.launch import options, overlap, power_of_two
from thinkfast.kernels.triton.mixer_kernels import advance, prepare, whole

HOLD = 4
FP8_MAX = 448.0


@dataclass(frozen=True, slots=True)
class MixerLayer:
    """taps [W, C], conv_bias [C], rates [H] (A, negative), dt_bias [H], skip [H], norm [H P]; all fp32."""

    taps: Tensor
    conv_bias: Tensor
    rates: Tensor
    dt_bias: Tensor
    skip: Tensor
    norm: Tensor
    kv_heads: int
    eps: float


@dataclass(frozen=True, slots=True)
class MixerState:
    """By slot: ssm [S, H, P, N] as last written, in fp32, bf16 or fp8 with scale [S, H]; conv [S, W, C], a ring of raw
    inputs by position; held [S, D, K (P + N)] activated x and B, and steps [S, D, H] fp32 their dt, rings by step.
    """

    ssm: Tensor
    scale: Tensor
    conv: Tensor
    held: Tensor
    steps: Tensor


@dataclass(frozen=True, slots=True)
class MixerRows:
    """active [B] int32: slots. By slot: position [S] int64, drawn [S] int64 (tokens sampled so far, at least 1 when
    a step begins), key [S] int64 of the random numbers.
    """

    active: Tensor
    position: Tensor
    drawn: Tensor
    key: Tensor


@dataclass(frozen=True, slots=True)
class MixerWork:
    """What the first kernel hands the second, for the rows of a step: read [B, H N], C activated; rest [B, H, P]
    fp32, everything of y that does not come from the written state; weight [B, H, D + 1] fp32, each held input's
    weight and, last, the decay of the written state; inverse [B] fp32, what rows have yet to be multiplied by.
    """

    read: Tensor
    rest: Tensor
    weight: Tensor
    inverse: Tensor

    @classmethod
    def make(cls, rows: int, heads: int, p: int, n: int, dtype: torch.dtype, device: torch.device) -> MixerWork:
        """Room for ``rows`` rows."""
        f = torch.float32
        return cls(
            torch.empty(rows, heads * n, dtype=dtype, device=device),
            torch.empty(rows, heads, p, dtype=f, device=device),
            torch.empty(rows, heads, HOLD + 1, dtype=f, device=device),
            torch.empty(rows, dtype=f, device=device),
        )


@dataclass(frozen=True, slots=True)
class Undivided:
    """Rows that were projected without having been divided by their root mean square (engine/cuda/folding.py): residual
    [B, D], what was projected, and the norm's eps.
    """

    residual: Tensor
    eps: float


def narrow(dtype: torch.dtype) -> int:
    """How a state of ``dtype`` is written: 0 as it is, 1 bf16 at random, 2 fp8 with a scale at random."""
    return {torch.bfloat16: 1, torch.float8_e4m3fn: 2}.get(dtype, 0)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the kernels are cut: a program of the second has ``each`` heads of a row and ``warps`` warps, one of the
    first ``small_warps``. ``whole``: one kernel does it all, a head a program.
    """

    each: int
    warps: int = 1
    small_warps: int = 1
    whole: bool = False


# Entries of a head's state, and the most rows for which one kernel is faster than two (H100, docs/lab.md). More entries
# do not fit a program's registers (64 x 128 spills 5 KB a thread).
_WHOLE = ((1024, 64), (4096, 8))


def tiling(b: int, group: int, p: int, n: int) -> Tiling:
    """For ``b`` rows of heads in groups of ``group``."""
    if any(p * n <= entries and b <= rows for entries, rows in _WHOLE):
        return Tiling(1, max(1, min(4, p * n // 512)) if b <= 16 else 1, whole=True)
    # A program needs some kilobytes of state to be worth its start.
    each = 1
    while b > 32 and group % (2 * each) == 0 and 2 * each * p * n <= 2048:
        each *= 2
    # At many rows two warps do up to 8,192 entries: the fewer there are, the less they have to tell each other (2.4 %
    # of a step at 512 rows with d_state 64, 3.5 % with 128).
    entries = each * p * n
    share, small = (1024, 4) if b <= 64 else (4096, 1)
    return Tiling(each, max(1, min(2, entries // 1024), min(8, entries // share)), small)


def mix(
    projected: Tensor,
    layer: MixerLayer,
    state: MixerState,
    rows: MixerRows,
    work: MixerWork,
    out: Tensor,
    number: int = 0,
    cut: Tiling | None = None,
    undivided: Undivided | None = None,
) -> None:
    """out [B, H P] from projected [B, H P + C + H] (z, x, B, C, dt); ``state`` moves on by one token a row.

    ``number`` is the layer's, which decorrelates the rounding of layers; ``cut`` is `tiling`'s unless given.
    ``undivided``, where the rows are: their residual must have been there before the projection began, as it is where
    cuBLAS projects. Takes two kernels.
    """
    _, heads, p, n = state.ssm.shape
    kv, b, dev, pdl = layer.kv_heads, out.shape[0], out.device, overlap(out.device)
    held, width, stride = state.held.shape[1], state.conv.shape[1], projected.stride(0)
    where = (rows.active, rows.position, rows.drawn, rows.key)
    handed = (work.read, work.rest, work.weight, work.inverse)
    given = work.inverse if undivided is None else undivided.residual
    t = cut or tiling(b, heads // kv, p, n)
    if t.whole and undivided is None:
        whole[(b, heads)](
            projected, state.conv, state.ssm, state.scale, state.held, state.steps, layer.taps, layer.conv_bias,
            layer.rates, layer.dt_bias, layer.skip, layer.norm, out, *where, number, layer.eps, stride,
            heads, kv, p, n, width, held, narrow(state.ssm.dtype), pdl, **options(t.warps, dev),
        )  # fmt: skip
        return
    prepare[(b, kv)](
        projected, state.conv, state.held, state.steps, layer.taps, layer.conv_bias, layer.rates, layer.dt_bias,
        layer.skip, *handed, given, *where, 0.0 if undivided is None else undivided.eps, stride,
        heads, kv, p, n, width, held, power_of_two(heads // kv), 0 if undivided is None else given.shape[1], pdl,
        **options(t.small_warps, dev),
    )  # fmt: skip
    advance[(b, heads // t.each)](
        projected, state.ssm, state.scale, state.held, layer.norm, *handed, out, *where, number, layer.eps, stride,
        heads, kv, p, n, held, t.each, narrow(state.ssm.dtype), undivided is not None, pdl, **options(t.warps, dev),
    )  # fmt: skip


def mix_reference(
    projected: Tensor,
    layer: MixerLayer,
    state: MixerState,
    rows: MixerRows,
    out: Tensor,
    number: int = 0,
    undivided: Undivided | None = None,
) -> None:
    """``mix`` in torch, writing the state in every step and rounding it to the nearest."""
    if undivided is not None:
        squares = undivided.residual.float().square().mean(1, keepdim=True)
        projected = projected.float() * (squares + undivided.eps).rsqrt()
    _, heads, p, n = state.ssm.shape
    kv, width = layer.kv_heads, state.conv.shape[1]
    sizes = (kv * p, kv * n, heads * n)
    slots = rows.active.long()
    position = rows.position[slots]
    z, raw, dt = projected.split_with_sizes((heads * p, sum(sizes), heads), 1)
    state.conv[slots, position % width] = raw.to(state.conv.dtype)
    order = (position[:, None] + 1 + torch.arange(width, device=out.device)) % width
    window = state.conv[slots[:, None], order].float()
    x, b, c = F.silu((window * layer.taps).sum(1) + layer.conv_bias).split_with_sizes(sizes, 1)
    group = heads // kv
    x = x.to(state.held.dtype).float().view(-1, kv, p).repeat_interleave(group, 1)
    b = b.to(state.held.dtype).float().view(-1, kv, n).repeat_interleave(group, 1)
    dt = F.softplus(dt.float() + layer.dt_bias)
    s = state.ssm[slots].float()
    if narrow(state.ssm.dtype) == 2:
        s = s * state.scale[slots][:, :, None, None]
    s = s * torch.exp(dt * layer.rates)[..., None, None] + (dt[..., None] * x)[..., None] * b[:, :, None]
    y = (s * c.view(-1, heads, 1, n)).sum(-1) + layer.skip[:, None] * x
    y = torch.rms_norm(y * F.silu(z.float()).view_as(y), (p,), None, layer.eps).flatten(1) * layer.norm
    store_nearest(state, slots, s)
    out.copy_(y)


def store_nearest(state: MixerState, slots: Tensor | int, ssm: Tensor) -> None:
    """Write states ssm [..., H, P, N] to ``slots``, rounded to the nearest: in torch, for the references."""
    if narrow(state.ssm.dtype) == 2:
        top = ssm.abs().amax((-2, -1)).clamp_min(1e-20)
        state.scale[slots] = top / FP8_MAX
        ssm = (ssm * (FP8_MAX / top)[..., None, None]).clamp(-FP8_MAX, FP8_MAX)
    state.ssm[slots] = ssm.to(state.ssm.dtype)
