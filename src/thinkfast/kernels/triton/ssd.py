"""Mamba prefill between its two projections, in two kernels, on flat ragged tokens: no padding, no chunk in memory.

The first convolves and activates; the second walks each sequence and head in chunks with the state in registers:
quadratic inside a chunk, the state between chunks, and skip, gate and norm on the way out.

Legend: T tokens, n sequences, H heads, K key-value heads, P head dim, N state, Q chunk, C conv channels, W width.

Usage: ``y, state = ssd_prefill(projected, layer, ragged.starts, ragged.lens, ragged.positions, (K, P, N))``.
Source: state-space duality, arXiv 2405.21060, section 6; the form is models/mixers.py's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from thinkfast.kernels.triton.launch import multiprocessors
from thinkfast.kernels.triton.mixer import MixerLayer

# Programs for each multiprocessor from which on it has enough to do while one waits.
_MANY = 8


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
def _convolve(RAW, OUT, TAPS, CBIAS, POSITIONS, width, offset, C, W: tl.constexpr, BC: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    position = tl.load(POSITIONS + t)
    x = tl.load(CBIAS + c, mask=c < C, other=0.0)
    for i in tl.static_range(W):
        u = tl.load(RAW + (t - i) * width + offset + c, mask=(c < C) & (i <= position), other=0.0)
        x += u.to(tl.float32) * tl.load(TAPS + (W - 1 - i) * C + c, mask=c < C, other=0.0)
    tl.store(OUT + t * C + c, (x * tl.sigmoid(x)).to(OUT.dtype.element_ty), mask=c < C)


@triton.jit
def _walk(
    RAW, ACT, STARTS, LENS, RATE, DTB, SKIP, NORM, OUT, STATE, width, eps,
    H: tl.constexpr, K: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
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
    for begin in range(0, length, Q):
        row = start + begin + q
        inside = (begin + q < length)[:, None]
        act = ACT + row[:, None] * C
        x = tl.load(act + kv * P + p[None, :], mask=inside, other=0.0)
        b = tl.load(act + K * P + kv * N + n[None, :], mask=inside, other=0.0)
        c = tl.load(act + K * P + K * N + h * N + n[None, :], mask=inside, other=0.0)
        dt = tl.load(RAW + row * width + H * P + C + h, mask=begin + q < length, other=0.0).to(tl.float32) + bias
        dt = tl.where(dt > 20.0, dt, tl.log(1.0 + tl.exp(dt)))
        dt = tl.where(begin + q < length, dt, 0.0)
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
        y = y * z * tl.sigmoid(z)
        y = y * tl.rsqrt(tl.sum(y * y, 1) / P + eps)[:, None] * norm[None, :]
        tl.store(OUT + row[:, None] * (H * P) + h * P + p[None, :], y.to(OUT.dtype.element_ty), mask=inside)
    tl.store(STATE + ((i.to(tl.int64) * H + h) * P + p[:, None]) * N + n[None, :], state)


def ssd_prefill(
    projected: Tensor, layer: MixerLayer, starts: Tensor, lens: Tensor, positions: Tensor, shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """projected [T, H P + C + H] of n sequences to the output projection's input [T, H P] and states [n, H, P, N] fp32.

    starts, lens [n], positions [T]; ``shape`` (K, P, N).
    """
    kv, p, n = shape
    heads = layer.rates.shape[0]
    total, width = projected.shape
    taps, channels = layer.taps.shape
    act = torch.empty(total, channels, dtype=projected.dtype, device=projected.device)
    out = torch.empty(total, heads * p, dtype=projected.dtype, device=projected.device)
    state = torch.empty(lens.shape[0], heads, p, n, dtype=torch.float32, device=projected.device)
    block = 512
    _convolve[(total, triton.cdiv(channels, block))](
        projected, act, layer.taps, layer.conv_bias, positions, width, heads * p, channels, taps, block, num_warps=1
    )
    chunk, warps, stages = _cut(lens.shape[0] * heads, p * n, projected.device)
    _walk[(lens.shape[0], heads)](
        projected, act, starts, lens, layer.rates, layer.dt_bias, layer.skip, layer.norm, out, state, width, layer.eps,
        heads, kv, p, n, chunk, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out, state


def ssd_prefill_reference(
    projected: Tensor, layer: MixerLayer, starts: Tensor, lens: Tensor, positions: Tensor, shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """``ssd_prefill`` in torch, token by token."""
    kv, p, n = shape
    heads = layer.rates.shape[0]
    sizes, width = (kv * p, kv * n, heads * n), layer.taps.shape[0]
    outs, states = [], []
    for start, length in zip(starts.tolist(), lens.tolist(), strict=True):
        z, raw, dt = projected[start : start + length].float().split_with_sizes((heads * p, sum(sizes), heads), 1)
        window = F.pad(raw, (0, 0, width - 1, 0)).unfold(0, width, 1)
        act = F.silu((window * layer.taps.t()).sum(-1) + layer.conv_bias).to(projected.dtype).float()
        x, b, c = act.split_with_sizes(sizes, 1)
        x, b = (t.view(length, kv, -1).repeat_interleave(heads // kv, 1) for t in (x, b))
        dt = F.softplus(dt + layer.dt_bias)
        s = torch.zeros(heads, p, n, device=projected.device)
        for t in range(length):
            s = s * torch.exp(dt[t] * layer.rates)[:, None, None] + (dt[t, :, None] * x[t])[..., None] * b[t, :, None]
            y = (s * c[t].view(heads, 1, n)).sum(-1) + layer.skip[:, None] * x[t]
            y = torch.rms_norm(y * F.silu(z[t]).view(heads, p), (p,), None, layer.eps).flatten() * layer.norm
            outs.append(y.to(projected.dtype))
        states.append(s)
    return torch.stack(outs), torch.stack(states)
