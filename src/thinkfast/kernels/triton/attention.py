"""Decode attention on paged KV: rotation, cache write and split-KV grouped-query attention in one kernel.

Each program takes one row, one key-value head and one share of the row's pages. The newest key and value come from
the projection, not from the cache, so the program that writes them need not wait for itself, and every row has at
least one token. A prompt that many rows share is read once per tile of rows by a second kernel whose queries fill the
tensor cores; partial softmaxes meet in a merge.

Legend: B rows, S slots, H heads, K key-value heads, G = H / K, P head dim, W tokens a page, T tiles, R rows a tile,
J parts (partial softmaxes a row).

Usage: ``attend(qkv, layer, rows, plan, out)``.
Source: split-KV decoding, arXiv 2311.01282; shared prefixes, arXiv 2402.05099.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from thinkfast.kernels.triton.launch import options, overlap, power_of_two, trigger, wait

# Rows of one prompt whose queries share a tile: with 4 heads a group they fill the 64 rows of a tensor core's tile.
TILE_ROWS = 16
_LOG2E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class KVLayer:
    """One layer's pages [pages, K, W, P] and, where queries and keys are normed, the norms' weights [P]."""

    k: Tensor
    v: Tensor
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


@dataclass(frozen=True, slots=True)
class KVRows:
    """Where rows stand. active [B] int32: slots. By slot: position [S] int64 of the newest token; shared [S] int64
    tokens of the prompt that lie in shared pages; table [S, pages a row] int32, shared pages first. cos, sin
    [positions, P / 2] fp32.
    """

    active: Tensor
    position: Tensor
    shared: Tensor
    table: Tensor
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """splits: shares of a row's own pages. tiles [T, R] int32 of rows that share a prompt, -1 where empty, or None
    where nothing is shared; prompt_splits: shares of the prompt. parts [B * J, H, P] fp32 and peaks [B * J, H] fp32
    hold partial results.
    """

    splits: int
    prompt_splits: int
    tiles: Tensor | None
    parts: Tensor
    peaks: Tensor

    @property
    def count(self) -> int:
        """J."""
        return self.splits + (self.prompt_splits if self.tiles is not None else 0)


@triton.jit
def _rotated(base, at, mask, cos, sin, NW, eps, d, partner, sign, P: tl.constexpr, NORM: tl.constexpr):
    """Queries at ``base + at`` [M, P] rotated; ``cos`` and ``sin`` broadcast to [M, P]."""
    x = tl.load(base + at + d[None, :], mask=mask, other=0.0).to(tl.float32)
    y = tl.load(base + at + partner[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(x * x, 1) / P + eps)[:, None]
        x = x * scale * tl.load(NW + d).to(tl.float32)[None, :]
        y = y * scale * tl.load(NW + partner).to(tl.float32)[None, :]
    return x * cos + y * sin * sign[None, :]


@triton.jit
def _with_page(q, k_page, v_page, limit, factor, m, l, acc, t, d, P: tl.constexpr):
    """The running softmax ``m``, ``l``, ``acc`` of queries [M, P] with the first ``limit`` tokens of a page added."""
    k = tl.load(k_page + t[None, :] * P + d[:, None])
    qk = tl.where((t < limit)[None, :], tl.dot(q, k, input_precision="ieee") * factor, float("-inf"))
    peak = tl.maximum(m, tl.max(qk, 1))
    p = tl.exp2(qk - peak[:, None])
    old = tl.exp2(m - peak)
    # What lies behind the end may be NaN, and 0 * NaN is NaN.
    v = tl.load(v_page + t[:, None] * P + d[None, :], mask=(t < limit)[:, None], other=0.0)
    acc = acc * old[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
    return peak, l * old + tl.sum(p, 1), acc


@triton.jit
def _store_part(OUT, PEAK, part, m, l, acc, mask, d, P: tl.constexpr):
    """Write a partial softmax: its mean of values and the log of its weight, -inf where it saw nothing."""
    empty = l == 0.0
    o = acc / tl.where(empty, 1.0, l)[:, None]
    tl.store(OUT + part[:, None] * P + d[None, :], o, mask=mask[:, None])
    tl.store(PEAK + part, tl.where(empty, float("-inf"), m + tl.log2(tl.where(empty, 1.0, l))), mask=mask)


@triton.jit
def _attend(
    QKV, K, V, OUT, PEAK, ACTIVE, POSITION, SHARED, TABLE, COS, SIN, QN, KN, scale, eps, width, per_slot,
    HK: tl.constexpr, G: tl.constexpr, GP: tl.constexpr, P: tl.constexpr, W: tl.constexpr, SPLITS: tl.constexpr,
    PARTS: tl.constexpr, TILED: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    s = tl.program_id(2)
    g = tl.arange(0, GP)
    d = tl.arange(0, P)
    t = tl.arange(0, W)
    half: tl.constexpr = P // 2
    partner = (d + half) % P
    sign = tl.where(d < half, -1.0, 1.0)
    slot = tl.load(ACTIVE + b).to(tl.int64)
    pos = tl.load(POSITION + slot)
    shared = tl.load(SHARED + slot)
    cos = tl.load(COS + pos * half + d % half)[None, :]
    sin = tl.load(SIN + pos * half + d % half)[None, :]
    own = pos - shared
    in_front = (shared + W - 1) // W
    total = in_front + (own + W - 1) // W
    first = tl.where(TILED, in_front, 0)
    chunk = (total - first + SPLITS - 1) // SPLITS
    lo = first + s * chunk
    hi = tl.minimum(lo + chunk, total)
    table = TABLE + slot * per_slot
    wait(PDL)
    row = QKV + b * width
    q = _rotated(row, (h * G + g[:, None]) * P, g[:, None] < G, cos, sin, QN, eps, d, partner, sign, P, NORM)
    q = q.to(K.dtype.element_ty)
    factor = scale * 1.4426950408889634
    if s == 0:
        one = tl.zeros([1, 1], tl.int32)
        k_new = _rotated(row, (HK * G + h + one) * P, one == 0, cos, sin, KN, eps, d, partner, sign, P, NORM)
        k_new = k_new.to(K.dtype.element_ty)
        v_new = tl.load(row + (HK * G + HK + h) * P + d)
        page = tl.load(table + in_front + own // W).to(tl.int64)
        place = (page * HK + h) * W * P + (own % W) * P
        tl.store(K + place + d[None, :], k_new)
        tl.store(V + place + d, v_new.to(V.dtype.element_ty))
        m = tl.sum(q.to(tl.float32) * k_new.to(tl.float32), 1) * factor
        l = tl.full([GP], 1.0, tl.float32)
        acc = tl.zeros([GP, P], tl.float32) + v_new.to(tl.float32)[None, :]
    else:
        m = tl.full([GP], float("-inf"), tl.float32)
        l = tl.zeros([GP], tl.float32)
        acc = tl.zeros([GP, P], tl.float32)
    trigger(PDL)
    for j in range(lo, hi):
        page = tl.load(table + j).to(tl.int64)
        limit = tl.where(j < in_front, shared - j * W, own - (j - in_front) * W)
        base = (page * HK + h) * W * P
        m, l, acc = _with_page(q, K + base, V + base, limit, factor, m, l, acc, t, d, P)
    if PARTS == 1:
        o = acc / l[:, None]
        at = b * HK * G * P + (h * G + g[:, None]) * P + d[None, :]
        tl.store(OUT + at, o.to(OUT.dtype.element_ty), mask=g[:, None] < G)
    else:
        _store_part(OUT, PEAK, (b * PARTS + s) * HK * G + h * G + g, m, l, acc, g < G, d, P)
        if TILED:
            if (s == 0) & (shared == 0):
                for i in range(SPLITS, PARTS):
                    none = (b * PARTS + i) * HK * G + h * G + g
                    tl.store(OUT + none[:, None] * P + d[None, :], tl.zeros([GP, P], tl.float32), mask=g[:, None] < G)
                    tl.store(PEAK + none, tl.full([GP], float("-inf"), tl.float32), mask=g < G)


@triton.jit
def _attend_prompt(
    QKV, K, V, OUT, PEAK, TILES, ACTIVE, POSITION, SHARED, TABLE, COS, SIN, QN, scale, eps, width, per_slot,
    HK: tl.constexpr, G: tl.constexpr, M: tl.constexpr, R: tl.constexpr, P: tl.constexpr, W: tl.constexpr,
    SPLITS: tl.constexpr, PARTS: tl.constexpr, PROMPT_SPLITS: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    h = tl.program_id(1)
    s = tl.program_id(2)
    leader = tl.load(TILES + tile * R)
    if leader < 0:
        return
    lane = tl.arange(0, M)
    d = tl.arange(0, P)
    t = tl.arange(0, W)
    half: tl.constexpr = P // 2
    partner = (d + half) % P
    sign = tl.where(d < half, -1.0, 1.0)
    b = tl.load(TILES + tile * R + lane // G, mask=lane < R * G, other=-1).to(tl.int64)
    valid = b >= 0
    b = tl.maximum(b, 0)
    slot = tl.load(ACTIVE + b).to(tl.int64)
    pos = tl.load(POSITION + slot)
    cos = tl.load(COS + pos[:, None] * half + (d % half)[None, :])
    sin = tl.load(SIN + pos[:, None] * half + (d % half)[None, :])
    first = tl.load(ACTIVE + leader).to(tl.int64)
    shared = tl.load(SHARED + first)
    table = TABLE + first * per_slot
    total = (shared + W - 1) // W
    chunk = (total + PROMPT_SPLITS - 1) // PROMPT_SPLITS
    lo = s * chunk
    hi = tl.minimum(lo + chunk, total)
    wait(PDL)
    trigger(PDL)
    at = b[:, None] * width + (h * G + lane % G)[:, None] * P
    q = _rotated(QKV, at, valid[:, None], cos, sin, QN, eps, d, partner, sign, P, NORM).to(K.dtype.element_ty)
    factor = scale * 1.4426950408889634
    m = tl.full([M], float("-inf"), tl.float32)
    l = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, P], tl.float32)
    for j in range(lo, hi):
        page = tl.load(table + j).to(tl.int64)
        limit = shared - j * W
        base = (page * HK + h) * W * P
        m, l, acc = _with_page(q, K + base, V + base, limit, factor, m, l, acc, t, d, P)
    _store_part(OUT, PEAK, (b * PARTS + SPLITS + s) * HK * G + h * G + lane % G, m, l, acc, valid, d, P)


@triton.jit
def _merge(PART, PEAK, OUT, H: tl.constexpr, P: tl.constexpr, PARTS: tl.constexpr, BJ: tl.constexpr, PDL: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    j = tl.arange(0, BJ)
    d = tl.arange(0, P)
    wait(PDL)
    trigger(PDL)
    part = (b * PARTS + j) * H + h
    peak = tl.load(PEAK + part, mask=j < PARTS, other=float("-inf"))
    weight = tl.exp2(peak - tl.max(peak, 0))
    o = tl.load(PART + part[:, None] * P + d[None, :], mask=(j < PARTS)[:, None], other=0.0)
    o = tl.sum(o * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(OUT + (b * H + h) * P + d, o.to(OUT.dtype.element_ty))


def attend(qkv: Tensor, layer: KVLayer, rows: KVRows, plan: SplitPlan, out: Tensor, scale: float, eps: float) -> None:
    """out [B, H P] = attention of qkv [B, (H + 2 K) P] over each row's context; its k and v are written to the pages.

    Rotates q and k by the rows' positions and norms them first where the layer says so.
    """
    _, kv, page, p = layer.k.shape
    b, heads = out.shape[0], out.shape[1] // p
    group, count, dev = heads // kv, plan.count, out.device
    qn = layer.q_norm if layer.q_norm is not None else out
    kn = layer.k_norm if layer.k_norm is not None else out
    norm, pdl = layer.q_norm is not None, overlap(dev)
    target = out if count == 1 else plan.parts
    places = (rows.active, rows.position, rows.shared, rows.table, rows.cos, rows.sin)
    sizes = (scale, eps, qkv.stride(0), rows.table.stride(0))
    if plan.tiles is not None:
        tiles, each = plan.tiles.shape
        _attend_prompt[(tiles, kv, plan.prompt_splits)](
            qkv, layer.k, layer.v, target, plan.peaks, plan.tiles, *places, qn, *sizes,
            kv, group, max(16, power_of_two(each * group)), each, p, page, plan.splits, count, plan.prompt_splits,
            norm, pdl, **options(4, dev, 2),
        )  # fmt: skip
    _attend[(b, kv, plan.splits)](
        qkv, layer.k, layer.v, target, plan.peaks, *places, qn, kn, *sizes,
        kv, group, max(16, power_of_two(group)), p, page, plan.splits, count, plan.tiles is not None, norm, pdl,
        **options(4 if p > 64 else 2, dev, 3),
    )  # fmt: skip
    if count > 1:
        _merge[(b, heads)](plan.parts, plan.peaks, out, heads, p, count, power_of_two(count), pdl, **options(1, dev))


def attend_reference(
    qkv: Tensor, layer: KVLayer, rows: KVRows, plan: SplitPlan, out: Tensor, scale: float, eps: float
) -> None:
    """``attend`` in torch, row by row; ``plan`` says nothing of what comes out."""
    _, kv, page, p = layer.k.shape
    heads = out.shape[1] // p
    half = p // 2
    for b, slot in enumerate(rows.active.tolist()):
        pos, shared = int(rows.position[slot]), int(rows.shared[slot])
        x = qkv[b].view(heads + 2 * kv, p).float()
        q, k, v = x.split_with_sizes((heads, kv, kv))
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = (
                torch.rms_norm(q, (p,), layer.q_norm.float(), eps),
                torch.rms_norm(k, (p,), layer.k_norm.float(), eps),
            )
        cos, sin = rows.cos[pos], rows.sin[pos]

        def turn(y: Tensor, cos: Tensor = cos, sin: Tensor = sin) -> Tensor:
            return torch.cat((y[:, :half] * cos - y[:, half:] * sin, y[:, half:] * cos + y[:, :half] * sin), 1)

        q, k = turn(q).to(layer.k.dtype).float(), turn(k).to(layer.k.dtype)
        in_front, own = -(-shared // page), pos - shared
        pages = rows.table[slot].long()
        new = pages[in_front + own // page]
        layer.k[new, :, own % page], layer.v[new, :, own % page] = k, v.to(layer.v.dtype)
        at = torch.arange(pos + 1, device=qkv.device)
        behind = at >= shared
        where = torch.where(behind, in_front * page + at - shared, at)
        keys, values = (t[pages[where // page], :, where % page].float() for t in (layer.k, layer.v))
        scores = torch.einsum("kgp,lkp->kgl", q.view(kv, -1, p), keys) * scale
        out[b] = torch.einsum("kgl,lkp->kgp", scores.softmax(-1), values).reshape(-1).to(out.dtype)
