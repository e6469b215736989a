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

The second kernel touches the state and little else: with everything in one, rearranging small vectors between the
lines and columns of the state's tile took three times as long as the state itself.

Usage: ``mix(projected, layer, state, rows, work, out)``.
Source: state-space duality, arXiv 2405.21060; the form is models/mixers.py's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from thinkfast.kernels.triton.launch import options, overlap, power_of_two, trigger, wait

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
    weight and, last, the decay of the written state.
    """

    read: Tensor
    rest: Tensor
    weight: Tensor

    @classmethod
    def make(cls, rows: int, heads: int, p: int, n: int, dtype: torch.dtype, device: torch.device) -> MixerWork:
        """Room for ``rows`` rows."""
        f = torch.float32
        return cls(
            torch.empty(rows, heads * n, dtype=dtype, device=device),
            torch.empty(rows, heads, p, dtype=f, device=device),
            torch.empty(rows, heads, HOLD + 1, dtype=f, device=device),
        )


@triton.jit
def _noise(x):
    """uint32 to uint32 that looks random (lowbias32)."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _past(CONV, TAPS, CBIAS, at, mask, position, C, W: tl.constexpr):
    """What the convolution of channels ``at`` has of earlier tokens, with its bias."""
    x = tl.load(CBIAS + at, mask=mask, other=0.0)
    for i in tl.static_range(1, W):
        past = tl.load(CONV + ((position + W - i) % W) * C + at, mask=mask, other=0.0).to(tl.float32)
        x += past * tl.load(TAPS + (W - 1 - i) * C + at, mask=mask, other=0.0)
    return x


@triton.jit
def _conv(row, CONV, TAPS, past, at, mask, position, C, W: tl.constexpr):
    """Convolved and activated channels ``at``, whose newest raw input goes into the ring."""
    now = tl.load(row + at, mask=mask, other=0.0)
    x = past + now.to(tl.float32) * tl.load(TAPS + (W - 1) * C + at, mask=mask, other=0.0)
    tl.store(CONV + (position % W) * C + at, now, mask=mask)
    return x * tl.sigmoid(x)


@triton.jit
def _phase(DRAWN, slot, key, D: tl.constexpr):
    """Where the newest input stands in its ring, and how many inputs are held with it."""
    done = tl.load(DRAWN + slot) - 1
    phase = (done + ((key >> 8) & 0xFF)) % D
    return phase, tl.minimum(done, phase) + 1


@triton.jit
def _earlier(
    HELD, STEPS, WEIGHT, cc, rest, gone, rate, ring, h, mine, there,
    H: tl.constexpr, K: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """``rest`` and ``gone`` with the input at ``ring`` of the held ones, if it is ``there``; its weight is noted."""
    p = tl.arange(0, P)
    n = tl.arange(0, N)
    held = HELD + ring * K * (P + N)
    step = tl.load(STEPS + ring * H + h, mask=mine & there, other=0.0)
    weight = tl.exp(gone) * step
    tl.store(WEIGHT + ring, weight, mask=mine & there)
    inner = tl.sum(cc * tl.load(held + P + n, mask=(n < N) & there, other=0.0).to(tl.float32)[None, :], 1)
    x = tl.load(held + p, mask=(p < P) & there, other=0.0).to(tl.float32)
    return rest + (weight * inner)[:, None] * x[None, :], gone + step * rate


@triton.jit
def _prepare(
    PROJECTED, CONV, HELD, STEPS, TAPS, CBIAS, RATE, DTB, SKIP, READ, REST, WEIGHT, ACTIVE, POSITION, DRAWN, KEY, width,
    H: tl.constexpr, K: tl.constexpr, P: tl.constexpr, N: tl.constexpr, W: tl.constexpr, D: tl.constexpr,
    GP: tl.constexpr, FEW: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    G: tl.constexpr = H // K
    C: tl.constexpr = K * P + K * N + H * N
    b = tl.program_id(0).to(tl.int64)
    kv = tl.program_id(1)
    p = tl.arange(0, P)
    n = tl.arange(0, N)
    g = tl.arange(0, GP)
    h = kv * G + g
    mine = g < G
    slot = tl.load(ACTIVE + b).to(tl.int64)
    position = tl.load(POSITION + slot)
    key = tl.load(KEY + slot)
    phase, count = _phase(DRAWN, slot, key, D)
    HELD += slot * D * K * (P + N) + kv * (P + N)
    STEPS += slot * D * H
    CONV += slot * W * C
    rate = tl.load(RATE + h, mask=mine, other=0.0)
    xs = kv * P + p
    bs = K * P + kv * N + n
    cs = K * P + K * N + h[:, None] * N + n[None, :]
    every = mine[:, None] & (n[None, :] < N)
    # Only this kernel writes the rings, a step apart: they may be read before what other kernels have to say.
    x = _past(CONV, TAPS, CBIAS, xs, p < P, position, C, W)
    bb = _past(CONV, TAPS, CBIAS, bs, n < N, position, C, W)
    cc = _past(CONV, TAPS, CBIAS, cs, every, position, C, W)
    wait(PDL)
    trigger(PDL)
    row = PROJECTED + b * width + H * P
    x = _conv(row, CONV, TAPS, x, xs, p < P, position, C, W).to(HELD.dtype.element_ty)
    bb = _conv(row, CONV, TAPS, bb, bs, n < N, position, C, W).to(HELD.dtype.element_ty)
    cc = _conv(row, CONV, TAPS, cc, cs, every, position, C, W)
    cc = cc.to(READ.dtype.element_ty)
    tl.store(READ + b * H * N + h[:, None] * N + n[None, :], cc, mask=mine[:, None])
    cc = cc.to(tl.float32)
    dt = tl.load(row + C + h, mask=mine, other=0.0).to(tl.float32) + tl.load(DTB + h, mask=mine, other=0.0)
    dt = tl.where(dt > 20.0, dt, tl.log(1.0 + tl.exp(dt)))
    tl.store(HELD + phase * K * (P + N) + p, x)
    tl.store(HELD + phase * K * (P + N) + P + n, bb)
    tl.store(STEPS + phase * H + h, dt, mask=mine)
    x = x.to(tl.float32)
    inner = tl.sum(cc * bb.to(tl.float32)[None, :], 1)
    rest = (dt * inner + tl.load(SKIP + h, mask=mine, other=0.0))[:, None] * x[None, :]
    WEIGHT += b * H * (D + 1) + h * (D + 1)
    tl.store(WEIGHT + phase, dt, mask=mine)
    gone = dt * rate
    # Few rows wait for memory: unrolled, all inputs come together. Many share the registers: one after another.
    if FEW:
        for j in tl.static_range(1, D):
            rest, gone = _earlier(HELD, STEPS, WEIGHT, cc, rest, gone, rate, phase - j, h, mine, j < count, H, K, P, N)
    else:
        for j in range(1, count):
            rest, gone = _earlier(HELD, STEPS, WEIGHT, cc, rest, gone, rate, phase - j, h, mine, True, H, K, P, N)
    tl.store(WEIGHT + D, tl.exp(gone), mask=mine)
    tl.store(REST + b * H * P + h[:, None] * P + p[None, :], rest, mask=mine[:, None])


@triton.jit
def _per_head(rows, EACH: tl.constexpr, P: tl.constexpr, TOP: tl.constexpr):
    """Sum (TOP: maximum) of each head's P entries of rows [EACH P], given to all of them."""
    heads = tl.reshape(rows, (EACH, P))
    found = tl.max(heads, 1) if TOP else tl.sum(heads, 1)
    return tl.reshape(tl.broadcast_to(found[:, None], (EACH, P)), (EACH * P,))


@triton.jit(do_not_specialize=["layer"])
def _advance(
    PROJECTED, SSM, SCALE, HELD, NORM, READ, REST, WEIGHT, OUT, ACTIVE, POSITION, DRAWN, KEY, layer, eps, width,
    H: tl.constexpr, K: tl.constexpr, P: tl.constexpr, N: tl.constexpr, D: tl.constexpr, EACH: tl.constexpr,
    NARROW: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * EACH
    kv = first // (H // K)
    r = tl.arange(0, EACH * P)
    n = tl.arange(0, N)
    p = r % P
    h = first + r // P
    slot = tl.load(ACTIVE + b).to(tl.int64)
    key = tl.load(KEY + slot)
    phase, count = _phase(DRAWN, slot, key, D)
    where = SSM + (slot * H * P + first * P + r[:, None]) * N + n[None, :]
    # No kernel of this step has written the state: it may come before what they have to say.
    s = tl.load(where).to(tl.float32)
    if NARROW == 2:
        s = s * tl.load(SCALE + slot * H + h)[:, None]
    norm = tl.load(NORM + first * P + r)
    wait(PDL)
    trigger(PDL)
    decay = tl.load(WEIGHT + (b * H + h) * (D + 1) + D)
    # Every line of the tile reads its head's C, so that it lies as the state does and nothing has to be rearranged.
    cc = tl.load(READ + (b * H + h)[:, None] * N + n[None, :]).to(tl.float32)
    y = decay * tl.sum(s * cc, 1) + tl.load(REST + (b * H + first) * P + r)
    z = tl.load(PROJECTED + b * width + first * P + r).to(tl.float32)
    y = y * z * tl.sigmoid(z)
    y = y * tl.rsqrt(_per_head(y * y, EACH, P, False) / P + eps) * norm
    tl.store(OUT + (b * H + first) * P + r, y.to(OUT.dtype.element_ty))
    if phase == D - 1:
        s = s * decay[:, None]
        HELD += slot * D * K * (P + N) + kv * (P + N)
        for j in range(D - count, D):
            xs = tl.load(HELD + j * K * (P + N) + p).to(tl.float32) * tl.load(WEIGHT + (b * H + h) * (D + 1) + j)
            bs = tl.load(HELD + j * K * (P + N) + P + n[None, :] + 0 * r[:, None]).to(tl.float32)
            s += xs[:, None] * bs
        if NARROW > 0:
            seed = (key ^ (key >> 32)).to(tl.uint32) + (tl.load(POSITION + slot) * 0x9E3779B1).to(tl.uint32)
            seed = _noise(seed + layer.to(tl.uint32) * 0x85EBCA6B)
            lines = _noise(seed + (first * P + r).to(tl.uint32))
            columns = _noise(seed ^ (n.to(tl.uint32) * 0x9E3779B1))
            noise = (lines[:, None] ^ columns[None, :]) * 0x9E3779B1
        if NARROW == 1:
            bits = s.to(tl.uint32, bitcast=True) + (noise >> 16)
            s = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
        if NARROW == 2:
            top = tl.maximum(_per_head(tl.max(tl.abs(s), 1), EACH, P, True), 1e-20)
            tl.store(SCALE + slot * H + h, top * (1.0 / 448.0), mask=p == 0)
            s = s * (448.0 / top)[:, None]
            # e4m3 keeps 3 bits of mantissa; below 2 ** -6 its steps are 2 ** -9.
            bits = s.to(tl.uint32, bitcast=True) + (noise >> 12)
            normal = (bits & 0xFFF00000).to(tl.float32, bitcast=True)
            share = (noise >> 8).to(tl.float32) * (1.0 / 16777216.0)
            small = tl.floor(s * 512.0 + share) * (1.0 / 512.0)
            s = tl.where(tl.abs(s) < 0.015625, small, normal)
            s = tl.minimum(tl.maximum(s, -448.0), 448.0)
        tl.store(where, s.to(SSM.dtype.element_ty))


def narrow(dtype: torch.dtype) -> int:
    """How a state of ``dtype`` is written: 0 as it is, 1 bf16 at random, 2 fp8 with a scale at random."""
    return {torch.bfloat16: 1, torch.float8_e4m3fn: 2}.get(dtype, 0)


def mix(
    projected: Tensor,
    layer: MixerLayer,
    state: MixerState,
    rows: MixerRows,
    work: MixerWork,
    out: Tensor,
    number: int = 0,
) -> None:
    """out [B, H P] from projected [B, H P + C + H] (z, x, B, C, dt); ``state`` moves on by one token a row.

    ``number`` is the layer's, which decorrelates the rounding of layers.
    """
    _, heads, p, n = state.ssm.shape
    kv, b, dev, pdl = layer.kv_heads, out.shape[0], out.device, overlap(out.device)
    held, width, stride = state.held.shape[1], state.conv.shape[1], projected.stride(0)
    where = (rows.active, rows.position, rows.drawn, rows.key)
    handed = (work.read, work.rest, work.weight)
    few = b <= 64
    _prepare[(b, kv)](
        projected, state.conv, state.held, state.steps, layer.taps, layer.conv_bias, layer.rates, layer.dt_bias,
        layer.skip, *handed, *where, stride, heads, kv, p, n, width, held, power_of_two(heads // kv), few, pdl,
        **options(4 if few else 1, dev),
    )  # fmt: skip
    # A program needs some kilobytes of state to be worth its start.
    each = 1
    while b > 32 and heads // kv % (2 * each) == 0 and 2 * each * p * n <= 2048:
        each *= 2
    _advance[(b, heads // each)](
        projected, state.ssm, state.scale, state.held, layer.norm, *handed, out, *where, number, layer.eps, stride,
        heads, kv, p, n, held, each, narrow(state.ssm.dtype), pdl,
        **options(max(1, min(8, each * p * n // 1024)), dev),
    )  # fmt: skip


def mix_reference(
    projected: Tensor, layer: MixerLayer, state: MixerState, rows: MixerRows, out: Tensor, number: int = 0
) -> None:
    """``mix`` in torch, writing the state in every step and rounding it to the nearest."""
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
    if narrow(state.ssm.dtype) == 2:
        top = s.abs().amax((2, 3)).clamp_min(1e-20)
        state.scale[slots] = top / FP8_MAX
        s = (s * (FP8_MAX / top)[..., None, None]).clamp(-FP8_MAX, FP8_MAX)
    state.ssm[slots] = s.to(state.ssm.dtype)
    out.copy_(y)
