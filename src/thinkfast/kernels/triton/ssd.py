"""Mamba prefill between its two projections, in two kernels, on flat ragged tokens: no padding, no chunk in memory.

The first convolves and activates; the second walks each sequence and head in chunks with the state in registers:
quadratic inside a chunk, the state between chunks, and skip, gate and norm on the way out. Both write what a step goes
on from where it will look for it.

Legend: T tokens, n sequences, H heads, K key-value heads, P head dim, N state, Q chunk, C conv channels, W width,
S slots.

Usage: ``y = ssd_prefill(projected, layer, Prompts.of(starts, lens, positions, sequence, slots, 4), state)``.
Source: state-space duality, arXiv 2405.21060, section 6; the form is models/mixers.py's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from thinkfast.kernels.triton.launch import multiprocessors
from thinkfast.kernels.triton.mixer import FP8_MAX, MixerLayer, MixerState, narrow, store_nearest
from thinkfast.kernels.triton.mixer_kernels import softplus
from thinkfast.kernels.triton.silu import silu

# Programs for each multiprocessor from which on it has enough to do while one waits.
_MANY = 8


@dataclass(frozen=True, slots=True)
class Prompts:
    """n sequences end to end: starts and lens [n], positions [T]; slots [n], where what they leave behind goes; places
    [T], the line of the rings of raw inputs [S W, C] that keeps a token's, -1 for none. All int64. before: tokens of
    the only sequence, W at least, that left behind what is in its slot.
    """

    starts: Tensor
    lens: Tensor
    positions: Tensor
    slots: Tensor
    places: Tensor
    before: int

    @classmethod
    def of(
        cls,
        starts: Tensor,
        lens: Tensor,
        sequence: Tensor,
        positions: Tensor,
        slots: Tensor,
        width: int,
        before: int = 0,
    ) -> Prompts:
        """With the ``sequence`` [T] of each token, and a convolution of ``width`` tokens."""
        kept = positions > (lens + (before - width))[sequence]
        places = slots[sequence] * width + positions % width
        return cls(starts, lens, positions, slots, torch.where(kept, places, -1), before)


def _cut(programs: int, head: int, device: torch.device) -> tuple[int, int, int]:
    """Tokens a chunk, warps and stages of a walk of ``programs`` sequences' heads with ``head`` states each (H100,
    docs/lab.md).
    """
    if head > 4096:
        return 32, 4 if head <= 8192 else 8, 1
    if programs < _MANY * multiprocessors(device):
        return 64, 4, 2
    return (32, 1, 1) if head <= 1024 else (32, 2, 2)


@triton.jit
def _convolve(
    RAW, OUT, TAPS, CBIAS, POSITIONS, PLACES, RING, BEFORE, width, offset, C, total, W: tl.constexpr, BC: tl.constexpr
):
    t = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    position = tl.load(POSITIONS + t)
    place = tl.load(PLACES + t)
    following = tl.load(POSITIONS + t + 1, mask=t + 1 < total, other=0)
    now = tl.load(RAW + t * width + offset + c, mask=c < C, other=0.0)
    x = tl.load(CBIAS + c, mask=c < C, other=0.0)
    x += now.to(tl.float32) * tl.load(TAPS + (W - 1) * C + c, mask=c < C, other=0.0)
    for i in tl.static_range(1, W):
        if BEFORE is None:
            u = tl.load(RAW + (t - i) * width + offset + c, mask=(c < C) & (i <= position), other=0.0)
        else:
            u = tl.load(RAW + (t - i) * width + offset + c, mask=(c < C) & (i <= t), other=0.0)
            u += tl.load(BEFORE + ((position - i) % W) * C + c, mask=(c < C) & (i > t), other=0.0)
        x += u.to(tl.float32) * tl.load(TAPS + (W - 1 - i) * C + c, mask=c < C, other=0.0)
    tl.store(OUT + t * C + c, silu(x).to(OUT.dtype.element_ty), mask=c < C)
    tl.store(RING + place * C + c, now, mask=(c < C) & (place >= 0))
    # A prompt that is shorter than the window: zeros stand before its first token.
    for i in tl.static_range(2, W):
        before = (following == 0) & (position + i < W)
        tl.store(RING + (place + i) * C + c, tl.full(now.shape, 0.0, now.dtype), mask=(c < C) & before)


@triton.jit
def _walk(
    RAW, ACT, STARTS, LENS, RATE, DTB, SKIP, NORM, OUT, SSM, SCALE, SLOTS, width, eps,
    H: tl.constexpr, K: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, TOP: tl.constexpr,
    PAST: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = K * P + K * N + H * N
    i = tl.program_id(0)
    h = tl.program_id(1)
    kv = h // (H // K)
    start = tl.load(STARTS + i).to(tl.int64)
    length = tl.load(LENS + i)
    q = tl.arange(0, Q)
    p = tl.arange(0, P)
    n = tl.arange(0, N)
    rate = tl.load(RATE + h)
    bias = tl.load(DTB + h)
    skip = tl.load(SKIP + h)
    norm = tl.load(NORM + h * P + p)
    state = tl.zeros([P, N], tl.float32)
    if PAST:
        left = tl.load(SLOTS + i) * H + h
        state = tl.load(SSM + (left * P + p[:, None]) * N + n[None, :]).to(tl.float32)
        if TOP > 0:
            state = state * tl.load(SCALE + left)
    for begin in range(0, length, Q):
        row = start + begin + q
        inside = (begin + q < length)[:, None]
        act = ACT + row[:, None] * C
        x = tl.load(act + kv * P + p[None, :], mask=inside, other=0.0)
        b = tl.load(act + K * P + kv * N + n[None, :], mask=inside, other=0.0)
        c = tl.load(act + K * P + K * N + h * N + n[None, :], mask=inside, other=0.0)
        dt = tl.load(RAW + row * width + H * P + C + h, mask=begin + q < length, other=0.0).to(tl.float32) + bias
        dt = tl.where(begin + q < length, softplus(dt), 0.0)
        log = dt * rate
        total = tl.cumsum(log, 0)
        end = tl.sum(log, 0)
        scores = tl.dot(c, tl.trans(b), input_precision="ieee")
        gap = tl.where(q[:, None] >= q[None, :], total[:, None] - total[None, :], float("-inf"))
        scores = scores * tl.exp(gap) * dt[None, :]
        y = tl.dot(scores.to(x.dtype), x, input_precision="ieee")
        y += tl.exp(total)[:, None] * tl.dot(c, tl.trans(state.to(c.dtype)), input_precision="ieee")
        weighted = (x.to(tl.float32) * (dt * tl.exp(end - total))[:, None]).to(b.dtype)
        state = state * tl.exp(end) + tl.dot(tl.trans(weighted), b, input_precision="ieee")
        y += skip * x.to(tl.float32)
        z = tl.load(RAW + row[:, None] * width + h * P + p[None, :], mask=inside, other=0.0).to(tl.float32)
        y = y * silu(z)
        y = y * tl.rsqrt(tl.sum(y * y, 1) / P + eps)[:, None] * norm[None, :]
        tl.store(OUT + row[:, None] * (H * P) + h * P + p[None, :], y.to(OUT.dtype.element_ty), mask=inside)
    place = tl.load(SLOTS + i) * H + h
    if TOP > 0:
        top = tl.maximum(tl.max(tl.max(tl.abs(state), 1), 0), 1e-20)
        tl.store(SCALE + place, top / TOP)
        state = tl.minimum(tl.maximum(state * (TOP / top), -TOP), TOP)
    tl.store(SSM + (place * P + p[:, None]) * N + n[None, :], state.to(SSM.dtype.element_ty))


def ssd_prefill(projected: Tensor, layer: MixerLayer, prompts: Prompts, into: MixerState) -> Tensor:
    """projected [T, H P + C + H] to the output projection's input [T, H P]; ``into`` has, in the prompts' slots, the
    last W - 1 raw inputs, zeros where there are fewer, and the states, rounded to the nearest. With ``before`` the one
    sequence goes on from those that it finds there.
    """
    _, heads, p, n = into.ssm.shape
    total, width = projected.shape
    taps, channels = layer.taps.shape
    act = torch.empty(total, channels, dtype=projected.dtype, device=projected.device)
    out = torch.empty(total, heads * p, dtype=projected.dtype, device=projected.device)
    block, count = 512, prompts.lens.shape[0]
    # A copy: the ring's lines are written by programs that other programs do not wait for.
    ring = into.conv[prompts.slots] if prompts.before else None
    _convolve[(total, triton.cdiv(channels, block))](
        projected, act, layer.taps, layer.conv_bias, prompts.positions, prompts.places, into.conv, ring, width,
        heads * p, channels, total, taps, block, num_warps=1,
    )  # fmt: skip
    chunk, warps, stages = _cut(count * heads, p * n, projected.device)
    _walk[(count, heads)](
        projected, act, prompts.starts, prompts.lens, layer.rates, layer.dt_bias, layer.skip, layer.norm, out, into.ssm,
        into.scale, prompts.slots, width, layer.eps, heads, layer.kv_heads, p, n, chunk,
        FP8_MAX if narrow(into.ssm.dtype) == 2 else 0.0, prompts.before > 0, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def ssd_prefill_reference(projected: Tensor, layer: MixerLayer, prompts: Prompts, into: MixerState) -> Tensor:
    """``ssd_prefill`` in torch, token by token."""
    _, heads, p, n = into.ssm.shape
    kv, width = layer.kv_heads, layer.taps.shape[0]
    sizes = (kv * p, kv * n, heads * n)
    outs = []
    ends = (prompts.starts.tolist(), prompts.lens.tolist(), prompts.slots.tolist())
    for start, length, slot in zip(*ends, strict=True):
        z, raw, dt = projected[start : start + length].split_with_sizes((heads * p, sum(sizes), heads), 1)
        padded = F.pad(raw, (0, 0, width - 1, 0))
        for back in range(1, width) if prompts.before else ():
            padded[width - 1 - back] = into.conv[slot, (prompts.before - back) % width]
        for back in range(1, width):
            into.conv[slot, (prompts.before + length - back) % width] = padded[-back]
        act = F.silu((padded.float().unfold(0, width, 1) * layer.taps.t()).sum(-1) + layer.conv_bias)
        x, b, c = act.to(projected.dtype).float().split_with_sizes(sizes, 1)
        x, b = (t.view(length, kv, -1).repeat_interleave(heads // kv, 1) for t in (x, b))
        dt = F.softplus(dt.float() + layer.dt_bias)
        s = torch.zeros(heads, p, n, device=projected.device)
        if prompts.before:
            s = into.ssm[slot].float() * (into.scale[slot, :, None, None] if narrow(into.ssm.dtype) == 2 else 1.0)
        for t in range(length):
            s = s * torch.exp(dt[t] * layer.rates)[:, None, None] + (dt[t, :, None] * x[t])[..., None] * b[t, :, None]
            y = (s * c[t].view(heads, 1, n)).sum(-1) + layer.skip[:, None] * x[t]
            y = torch.rms_norm(y * F.silu(z[t].float()).view(heads, p), (p,), None, layer.eps).flatten() * layer.norm
            outs.append(y.to(projected.dtype))
        store_nearest(into, slot, s)
    return torch.stack(outs)
