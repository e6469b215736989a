"""Sampling and bookkeeping of a step: one pass over the logits, then one small program a row.

``scan`` reads the logits once, in blocks, and keeps of each block its peak, its sums of exponentials at temperature
and at 1, and the sum of the logits. ``draw`` finds the block and in it the token at which the cumulative distribution
passes the row's uniform number (the counter-based one of engine/rng.py, so that a token does not depend on the batch),
notes its log-probability, decides whether the row goes on, and moves the row's state. Rows with top-k, top-p or min-p
go through a third kernel that finds, by bisection over the bits of the logits, which tokens are kept and which of them,
likeliest first, the uniform number hits.

Of many rows the logits are more than the L2 holds. The head then makes them in ``parts``, each scanned before the next
is made: 0.7 % of a step at 512 rows, where two or eight parts are the same; at 256 two would cost 1 % (H100,
docs/lab.md).

Legend: B rows, S slots, V vocabulary, J blocks a row.

Usage: ``scan(logits, rows, work); draw(logits, rows, eos, stops, work, news, filters=False)``.
Source: splitmix64 (Steele, Lea, Flood 2014); nucleus sampling arXiv 1904.09751; min-p arXiv 2407.01082.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from thinkfast.kernels.triton.launch import options, overlap, power_of_two, trigger, wait

BLOCK = 4096
# Bytes of logits that are made before they are scanned.
_ROOM = 1 << 26
# News of a row and step: its code, the token, the bits of its log-probability and of how certain the model was.
CODE, TOKEN, LOGPROB, CERTAINTY = range(4)
NEWS = 4
_LENGTH, _EOS, _ERROR = 2, 3, 4


@dataclass(frozen=True, slots=True)
class SampleRows:
    """active [B] int32: slots. By slot: token, alive [S] int32; position, drawn, limit, key, top_k, stop [S] int64
    (stop: which table, 0 for none); inverse_temperature, top_p, min_p [S] fp32; greedy, watch_eos [S] int32.
    """

    active: Tensor
    token: Tensor
    alive: Tensor
    position: Tensor
    drawn: Tensor
    limit: Tensor
    key: Tensor
    top_k: Tensor
    stop: Tensor
    inverse_temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    greedy: Tensor
    watch_eos: Tensor


@dataclass(frozen=True, slots=True)
class SampleWork:
    """Sums of blocks [5, B, J] fp32 and, of rows with filters, the token found [B] int32."""

    sums: Tensor
    found: Tensor

    @classmethod
    def make(cls, rows: int, vocabulary: int, device: torch.device) -> SampleWork:
        """Room for ``rows`` rows."""
        blocks = triton.cdiv(vocabulary, BLOCK)
        sums = torch.empty(5, rows, blocks, dtype=torch.float32, device=device)
        return cls(sums, torch.empty(rows, dtype=torch.int32, device=device))


@triton.jit(do_not_specialize=["start"])
def _scan(LOGITS, SUMS, ACTIVE, INVERSE, start, V, stride, J: tl.constexpr, BV: tl.constexpr, PDL: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    j = start + tl.program_id(1)
    i = j * BV + tl.arange(0, BV)
    inverse = tl.load(INVERSE + tl.load(ACTIVE + b)) * 1.4426950408889634
    wait(PDL)
    trigger(PDL)
    # Only the last block has places without a token.
    if (j + 1) * BV <= V:
        x = tl.load(LOGITS + b * V + i).to(tl.float32)
        total = tl.sum(x, 0)
    else:
        x = tl.load(LOGITS + b * V + i, mask=i < V, other=float("-inf")).to(tl.float32)
        total = tl.sum(tl.where(i < V, x, 0.0), 0)
    peak = tl.max(x, 0)
    safe = tl.where(tl.abs(peak) < float("inf"), peak, 0.0)
    warm = tl.sum(tl.exp2((x - safe) * inverse), 0)
    plain = tl.sum(tl.exp2((x - safe) * 1.4426950408889634), 0)
    # NaN and infinity make one of the sums what they are, and -infinity where a token is the other one.
    bad = tl.where((plain < float("inf")) & (tl.abs(total) < float("inf")), 0.0, 1.0)
    SUMS += b * J + j
    tl.store(SUMS, peak)
    tl.store(SUMS + stride, warm)
    tl.store(SUMS + 2 * stride, plain)
    tl.store(SUMS + 3 * stride, bad)
    tl.store(SUMS + 4 * stride, total)


@triton.jit
def _uniform(key, counter):
    """engine/rng.py's number in [0, 1 - 2 ** -23]; key and counter int64."""
    golden = tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
    x = key.to(tl.uint64, bitcast=True) + (counter + 1).to(tl.uint64, bitcast=True) * golden
    x = (x ^ (x >> 30)) * tl.full([], 0xBF58476D1CE4E5B9, tl.uint64)
    x = (x ^ (x >> 27)) * tl.full([], 0x94D049BB133111EB, tl.uint64)
    x = x ^ (x >> 31)
    return (x >> 41).to(tl.int64).to(tl.float32) * (1.0 / 8388608.0)


@triton.jit
def _pick(
    LOGITS, SUMS, FOUND, NEWS, ACTIVE, TOKEN, ALIVE, POSITION, DRAWN, LIMIT, KEY, STOP, INVERSE, TOP_K, TOP_P, MIN_P,
    GREEDY, WATCH, EOS, STOPS, TURN, V, stride, news,
    J: tl.constexpr, BJ: tl.constexpr, BV: tl.constexpr, FILTERS: tl.constexpr, RING: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BJ)
    slot = tl.load(ACTIVE + b)
    drawn = tl.load(DRAWN + slot)
    inverse = tl.load(INVERSE + slot) * 1.4426950408889634
    u = _uniform(tl.load(KEY + slot), drawn)
    wait(PDL)
    trigger(PDL)
    SUMS += b * J + j
    there = j < J
    peaks = tl.load(SUMS, mask=there, other=float("-inf"))
    peak, best = tl.max(peaks, 0, return_indices=True)
    bad = tl.max(tl.load(SUMS + 3 * stride, mask=there, other=0.0), 0) > 0.0
    safe = tl.where(tl.abs(peak) < float("inf"), peak, 0.0)
    live = there & (tl.abs(peaks) < float("inf"))
    gap = tl.where(live, peaks - safe, 0.0)
    warm = tl.where(live, tl.load(SUMS + stride, mask=there, other=0.0) * tl.exp2(gap * inverse), 0.0)
    plain = tl.load(SUMS + 2 * stride, mask=there, other=0.0)
    total = tl.sum(tl.where(live, plain * tl.exp2(gap * 1.4426950408889634), 0.0), 0)
    running = tl.cumsum(warm, 0)
    aim = u * tl.sum(warm, 0)
    # The last block of positive weight is the last that can be drawn, whatever rounding does to the sums.
    last = tl.max(tl.where(warm > 0.0, j, 0), 0)
    block = tl.minimum(tl.sum(tl.where(there & (running <= aim), 1, 0), 0), last)
    before = tl.sum(tl.where(j == block, running - warm, 0.0), 0)
    greedy = tl.load(GREEDY + slot) != 0
    block = tl.where(greedy, best, block)
    k = tl.arange(0, BV)
    i = block * BV + k
    x = tl.load(LOGITS + b * V + i, mask=i < V, other=float("-inf")).to(tl.float32)
    weight = tl.exp2((x - safe) * inverse)
    within = tl.cumsum(weight, 0)
    reach = tl.max(tl.where(weight > 0.0, k, 0), 0)
    token = block * BV + tl.minimum(tl.sum(tl.where(before + within <= aim, 1, 0), 0), reach)
    if FILTERS:
        held = (tl.load(TOP_K + slot) > 0) | (tl.load(TOP_P + slot) < 1.0) | (tl.load(MIN_P + slot) > 0.0)
        token = tl.where(held, tl.load(FOUND + b), token)
    likeliest = block * BV + tl.min(tl.where(x == peak, k, BV - 1), 0)
    token = tl.where(greedy, likeliest, token)
    token = tl.minimum(tl.maximum(token, 0), V - 1)
    normaliser = safe + tl.log(total)
    logprob = tl.load(LOGITS + b * V + token).to(tl.float32) - normaliser
    # KL(uniform, model), arXiv 2502.18581.
    certainty = normaliser - tl.sum(tl.load(SUMS + 4 * stride, mask=there, other=0.0), 0) / V - tl.log(V + 0.0)

    drawn += 1
    maybe = tl.load(STOPS + tl.load(STOP + slot) * V + token).to(tl.int32)
    code = tl.where(drawn >= tl.load(LIMIT + slot), 2, tl.where(maybe != 0, 1, 0))
    ended = (tl.load(EOS + token) != 0) & (tl.load(WATCH + slot) != 0)
    code = tl.where(ended, 3, code)
    code = tl.where(bad, 4, code)
    if RING > 1:
        # A count that has run over is negative, and its remainder would be.
        NEWS += (tl.load(TURN) & (RING - 1)) * 4 * news
    tl.store(NEWS + b, code)
    tl.store(NEWS + news + b, token)
    tl.store(NEWS + 2 * news + b, logprob.to(tl.int32, bitcast=True))
    tl.store(NEWS + 3 * news + b, certainty.to(tl.int32, bitcast=True))
    if tl.load(ALIVE + slot) != 0:
        tl.store(TOKEN + slot, token)
        tl.store(POSITION + slot, tl.load(POSITION + slot) + 1)
        tl.store(DRAWN + slot, drawn)
        tl.store(ALIVE + slot, tl.where(code >= 2, 0, 1))


@triton.jit
def _order(x):
    """fp32 to uint32 in the same order."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _above(LOGITS, edge, peak, inverse, V, BV: tl.constexpr):
    """How many logits are at or above ``edge`` in order, and their weight."""
    k = tl.arange(0, BV)
    number = tl.zeros([BV], tl.int32)
    mass = tl.zeros([BV], tl.float32)
    for start in range(0, V, BV):
        i = start + k
        x = tl.load(LOGITS + i, mask=i < V, other=float("-inf")).to(tl.float32)
        above = (_order(x) >= edge) & (i < V)
        number += tl.where(above, 1, 0)
        mass += tl.where(above, tl.exp2((x - peak) * inverse), 0.0)
    return tl.sum(number, 0), tl.sum(mass, 0)


@triton.jit
def _filtered(
    LOGITS, SUMS, FOUND, ACTIVE, DRAWN, KEY, INVERSE, TOP_K, TOP_P, MIN_P, GREEDY, V, stride,
    J: tl.constexpr, BJ: tl.constexpr, BV: tl.constexpr, BITS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    slot = tl.load(ACTIVE + b)
    top_k = tl.load(TOP_K + slot)
    top_p = tl.load(TOP_P + slot)
    min_p = tl.load(MIN_P + slot)
    wait(PDL)
    trigger(PDL)
    if ((top_k > 0) | (top_p < 1.0) | (min_p > 0.0)) & (tl.load(GREEDY + slot) == 0):
        j = tl.arange(0, BJ)
        inverse = tl.load(INVERSE + slot) * 1.4426950408889634
        peak = tl.max(tl.load(SUMS + b * J + j, mask=j < J, other=float("-inf")), 0)
        row = LOGITS + b * V
        zero = tl.full([], 0, tl.uint32)
        # A step to the next order of logits: those of bf16 differ in their upper half only.
        up = tl.full([], 1, tl.uint32) << (32 - BITS)
        # The highest edge at or above which there are top_k logits; every logit at the edge or above is a candidate.
        edge = zero
        ties = tl.full([], 0, tl.int32) + V
        if top_k > 0:
            for bit in range(0, BITS):
                probe = edge | (tl.full([], 0x80000000, tl.uint32) >> bit)
                number, mass = _above(row, probe, peak, inverse, V, BV)
                edge = tl.where(number >= top_k, probe, edge)
            number, mass = _above(row, edge + up, peak, inverse, V, BV)
            ties = (tl.minimum(top_k, V) - number).to(tl.int32)
        number, mass = _above(row, edge, peak, inverse, V, BV)
        higher, above = _above(row, edge + up, peak, inverse, V, BV)
        here = (mass - above) / tl.maximum(number - higher, 1)
        kept = tl.where(top_k > 0, above + here * ties, mass)
        # The nucleus: down to the first logit at or above which the mass reaches top_p of what top_k has left.
        if top_p < 1.0:
            goal = top_p * kept
            nucleus = zero
            for bit in range(0, BITS):
                probe = nucleus | (tl.full([], 0x80000000, tl.uint32) >> bit)
                number, mass = _above(row, probe, peak, inverse, V, BV)
                nucleus = tl.where(mass >= goal, probe, nucleus)
            if nucleus > edge:
                edge = nucleus
                number, mass = _above(row, edge, peak, inverse, V, BV)
                higher, above = _above(row, edge + up, peak, inverse, V, BV)
                ties = number - higher
                here = (mass - above) / tl.maximum(ties, 1)
            if nucleus >= edge:
                wanted = tl.ceil((goal - above) / tl.maximum(here, 1e-38))
                ties = tl.minimum(ties, tl.maximum(wanted, 1.0).to(tl.int32))
        if min_p > 0.0:
            floor = _order(peak + tl.log2(min_p) / inverse)
            if floor > edge:
                edge = floor
                higher, above = _above(row, edge, peak, inverse, V, BV)
                ties = number * 0
                here = mass * 0.0
        aim = _uniform(tl.load(KEY + slot), tl.load(DRAWN + slot)) * (above + here * ties)
        # Likeliest first: the highest edge at or above which the mass passes the aim, or a tie at the last edge.
        token = 0
        k = tl.arange(0, BV)
        deep = (above <= aim) & (ties > 0)
        hit = edge
        passed = above
        share = here
        if not deep:
            hit = zero
            for bit in range(0, BITS):
                probe = hit | (tl.full([], 0x80000000, tl.uint32) >> bit)
                number, mass = _above(row, probe, peak, inverse, V, BV)
                hit = tl.where(mass > aim, probe, hit)
            number, mass = _above(row, hit, peak, inverse, V, BV)
            higher, passed = _above(row, hit + up, peak, inverse, V, BV)
            ties = tl.maximum(number - higher, 1)
            share = (mass - passed) / ties
        nth = tl.minimum(tl.floor((aim - passed) / tl.maximum(share, 1e-38)).to(tl.int32), ties - 1)
        seen = 0
        for start in range(0, V, BV):
            i = start + k
            x = tl.load(row + i, mask=i < V, other=float("-inf")).to(tl.float32)
            at = ((_order(x) >> (32 - BITS)) == (hit >> (32 - BITS))) & (i < V)
            rank = seen + tl.cumsum(at.to(tl.int32), 0) - 1
            token += tl.sum(tl.where(at & (rank == nth), i, 0), 0)
            seen += tl.sum(at.to(tl.int32), 0)
        tl.store(FOUND + b, token)


def parts(rows: int, vocabulary: int, entry_bytes: int) -> list[tuple[int, int]]:
    """First token and end of each part in which a head should make logits [rows, vocabulary] and have them scanned."""
    some = max(1, _ROOM // (rows * entry_bytes * BLOCK)) * BLOCK
    return [(first, min(first + some, vocabulary)) for first in range(0, vocabulary, some)]


def scan(logits: Tensor, rows: SampleRows, work: SampleWork, first: int = 0, end: int | None = None) -> None:
    """Sum up, in blocks, tokens ``first`` (a multiple of BLOCK) to ``end`` of logits [B, V]: what ``draw`` goes by."""
    b, v = logits.shape
    blocks = triton.cdiv((v if end is None else end) - first, BLOCK)
    _scan[(b, blocks)](
        logits, work.sums, rows.active, rows.inverse_temperature, first // BLOCK, v, work.sums.stride(0),
        work.sums.shape[2], BLOCK, overlap(logits.device), **options(4, logits.device),
    )  # fmt: skip


def draw(
    logits: Tensor,
    rows: SampleRows,
    eos: Tensor,
    stops: Tensor,
    work: SampleWork,
    news: Tensor,
    filters: bool,
    turn: Tensor | None = None,
) -> None:
    """Draw one token a row from logits [B, V], all of them scanned, and move the rows that are alive; ``news`` [NEWS, B
    or more] int32, or a ring [R, NEWS, B or more] of them, in pinned memory of the host's too: that of turn [1],
    counted in rings of R, a power of two.

    eos [V] uint8 marks end tokens, stops [tables, V] uint8 tokens that may complete a stop string. Without
    ``filters`` rows must not ask for top_k, top_p or min_p. News of rows that have ended before mean nothing.
    """
    b, v = logits.shape
    dev, pdl = logits.device, overlap(logits.device)
    blocks = work.sums.shape[2]
    stride, pad = work.sums.stride(0), power_of_two(blocks)
    limits = (rows.inverse_temperature, rows.top_k, rows.top_p, rows.min_p, rows.greedy)
    if filters:
        bits = 16 if logits.dtype == torch.bfloat16 else 32
        _filtered[(b,)](
            logits, work.sums, work.found, rows.active, rows.drawn, rows.key, *limits, v, stride,
            blocks, pad, BLOCK, bits, pdl, **options(16, dev),
        )  # fmt: skip
    _pick[(b,)](
        logits, work.sums, work.found, news, rows.active, rows.token, rows.alive, rows.position, rows.drawn,
        rows.limit, rows.key, rows.stop, *limits, rows.watch_eos, eos, stops, rows.active if turn is None else turn,
        v, stride, news.stride(-2), blocks, pad, BLOCK, filters, 1 if turn is None else news.shape[0], pdl,
        **options(4, dev),
    )  # fmt: skip
