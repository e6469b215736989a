"""One Mamba step between its two projections, in one kernel: convolution, SiLU, gates, state, skip, gate and norm.

The state is read in every step and written in every HOLD-th only. In between, the newest inputs wait in a short ring
and are added to what is read from memory: with S the state as last written, n inputs held and t_j their decays up to
now, y = exp(sum of all) S C + sum_j exp(t_j) dt_j (C . B_j) x_j. That is the chunked form of the recurrence with
chunks of at most HOLD tokens, moves 1 + 1 / HOLD states a step in place of 2, and rounds a narrow state HOLD times
less often. Rows write in different steps, so that every step moves as much.

What is written may be narrower than it is computed: bf16 and fp8 (e4m3 with a scale a head) are rounded at random in
proportion to the two neighbours, because rounding to the nearest loses every input below half a step of the state.

Legend: B rows, S slots, H heads, K key-value heads, G = H / K, P head dim, N state, W convolution width,
C conv channels, D = HOLD inputs held.

Usage: ``mix(projected, layer, state, rows, out)``.
Source: state-space duality, arXiv 2405.21060; the form is models/mixers.py's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from thinkfast.kernels.triton.launch import options, overlap, trigger, wait

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


@triton.jit
def _noise(x):
    """uint32 to uint32 that looks random (lowbias32)."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _conv(row, CONV, TAPS, CBIAS, at, position, C, W: tl.constexpr):
    """Convolved and activated channels ``at``, and the newest raw input."""
    now = tl.load(row + at)
    x = now.to(tl.float32) * tl.load(TAPS + (W - 1) * C + at) + tl.load(CBIAS + at)
    for i in tl.static_range(1, W):
        past = tl.load(CONV + ((position + W - i) % W) * C + at).to(tl.float32)
        x += past * tl.load(TAPS + (W - 1 - i) * C + at)
    return x * tl.sigmoid(x), now


@triton.jit(do_not_specialize=["layer"])
def _mix(
    PROJECTED, SSM, SCALE, CONV, HELD, STEPS, TAPS, CBIAS, RATE, DTB, SKIP, NORM, OUT, ACTIVE, POSITION, DRAWN, KEY,
    layer, eps, width,
    H: tl.constexpr, K: tl.constexpr, P: tl.constexpr, N: tl.constexpr, W: tl.constexpr, D: tl.constexpr,
    EACH: tl.constexpr, NARROW: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    G: tl.constexpr = H // K
    C: tl.constexpr = K * P + K * N + H * N
    b = tl.program_id(0).to(tl.int64)
    kv = tl.program_id(1) // (G // EACH)
    part = tl.program_id(1) % (G // EACH)
    p = tl.arange(0, P)
    n = tl.arange(0, N)
    j = tl.arange(0, D)
    slot = tl.load(ACTIVE + b).to(tl.int64)
    position = tl.load(POSITION + slot)
    key = tl.load(KEY + slot)
    done = tl.load(DRAWN + slot) - 1
    phase = (done + ((key >> 8) & 0xFF)) % D
    count = tl.minimum(done, phase) + 1
    write = phase == D - 1
    ring = (phase - j + D) % D
    waits = (j > 0) & (j < count)
    HELD += slot * D * K * (P + N) + kv * (P + N)
    STEPS += slot * D * H
    CONV += slot * W * C
    held = HELD + ring[:, None] * K * (P + N)
    xs = tl.load(held + p[None, :], mask=waits[:, None], other=0.0)
    bs = tl.load(held + P + n[None, :], mask=waits[:, None], other=0.0)
    wait(PDL)
    trigger(PDL)
    row = PROJECTED + b * width
    at = kv * P + p
    x, x_raw = _conv(row + H * P, CONV, TAPS, CBIAS, at, position, C, W)
    at_b = K * P + kv * N + n
    bb, b_raw = _conv(row + H * P, CONV, TAPS, CBIAS, at_b, position, C, W)
    x = x.to(HELD.dtype.element_ty)
    bb = bb.to(HELD.dtype.element_ty)
    if part == 0:
        tl.store(CONV + (position % W) * C + at, x_raw)
        tl.store(CONV + (position % W) * C + at_b, b_raw)
        tl.store(HELD + phase * K * (P + N) + p, x)
        tl.store(HELD + phase * K * (P + N) + P + n, bb)
    x = x.to(tl.float32)
    xs = tl.where((j == 0)[:, None], x[None, :], xs.to(tl.float32))
    bs = tl.where((j == 0)[:, None], bb.to(tl.float32)[None, :], bs.to(tl.float32))
    for i in tl.static_range(EACH):
        h = kv * G + part * EACH + i
        where = SSM + ((slot * H + h) * P + p[:, None]) * N + n[None, :]
        s = tl.load(where).to(tl.float32)
        if NARROW == 2:
            s = s * tl.load(SCALE + slot * H + h)
        at_c = K * P + K * N + h * N + n
        cc, c_raw = _conv(row + H * P, CONV, TAPS, CBIAS, at_c, position, C, W)
        tl.store(CONV + (position % W) * C + at_c, c_raw)
        dt = tl.load(row + H * P + C + h).to(tl.float32) + tl.load(DTB + h)
        dt = tl.where(dt > 20.0, dt, tl.log(1.0 + tl.exp(dt)))
        tl.store(STEPS + phase * H + h, dt)
        dts = tl.load(STEPS + ring * H + h, mask=waits, other=0.0)
        dts = tl.where(j == 0, dt, dts)
        log = dts * tl.load(RATE + h)
        gone = tl.cumsum(log, 0) - log
        weight = tl.exp(gone) * dts
        decay = tl.exp(tl.sum(log, 0))
        y = decay * tl.sum(s * cc[None, :], 1) + x * tl.load(SKIP + h)
        y += tl.sum((weight * tl.sum(bs * cc[None, :], 1))[:, None] * xs, 0)
        z = tl.load(row + h * P + p).to(tl.float32)
        y = y * z * tl.sigmoid(z)
        y = y * tl.rsqrt(tl.sum(y * y, 0) / P + eps) * tl.load(NORM + h * P + p)
        tl.store(OUT + b * H * P + h * P + p, y.to(OUT.dtype.element_ty))
        if write:
            s = s * decay
            for q in tl.static_range(D):
                mine = j == q
                xq = tl.sum(tl.where(mine[:, None], xs * weight[:, None], 0.0), 0)
                s += xq[:, None] * tl.sum(tl.where(mine[:, None], bs, 0.0), 0)[None, :]
            if NARROW > 0:
                seed = (key ^ (key >> 32)).to(tl.uint32) + (position * 0x9E3779B1).to(tl.uint32) + layer.to(tl.uint32) * 0x85EBCA6B
                noise = _noise((h * P * N + p[:, None] * N + n[None, :]).to(tl.uint32) + _noise(seed.to(tl.uint32)))
            if NARROW == 1:
                bits = s.to(tl.uint32, bitcast=True) + (noise & 0xFFFF)
                s = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
            if NARROW == 2:
                top = tl.maximum(tl.max(tl.max(tl.abs(s), 1), 0), 1e-20)
                tl.store(SCALE + slot * H + h, top * (1.0 / 448.0))
                s = s * (448.0 / top)
                # e4m3 keeps 3 bits of mantissa; below 2 ** -6 its steps are 2 ** -9.
                bits = s.to(tl.uint32, bitcast=True) + (noise & 0xFFFFF)
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
    projected: Tensor, layer: MixerLayer, state: MixerState, rows: MixerRows, out: Tensor, number: int = 0
) -> None:
    """out [B, H P] from projected [B, H P + C + H] (z, x, B, C, dt); ``state`` moves on by one token a row.

    ``number`` is the layer's, which decorrelates the rounding of layers.
    """
    _, heads, p, n = state.ssm.shape
    kv, b, dev = layer.kv_heads, out.shape[0], out.device
    group = heads // kv
    # A program a group shares x and B; few rows need more programs than that to keep the memory busy.
    each = group if b * kv >= 1024 or group % 2 else group // 2 if b * kv >= 256 or group % 4 else group // 4
    each = max(each, 1)
    warps = max(1, min(4, p * n // 2048))
    _mix[(b, heads // each)](
        projected, state.ssm, state.scale, state.conv, state.held, state.steps, layer.taps, layer.conv_bias,
        layer.rates, layer.dt_bias, layer.skip, layer.norm, out, rows.active, rows.position, rows.drawn, rows.key,
        number, layer.eps, projected.stride(0), heads, kv, p, n, state.conv.shape[1], state.held.shape[1], each,
        narrow(state.ssm.dtype), overlap(dev), **options(warps, dev),
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
