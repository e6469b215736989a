"""The kernels of one Mamba step; mixer.py says what they do and cuts them.

`prepare` does the convolution, the gates and everything of y that does not come from the written state; `advance` reads
the state, adds the rest, norms, and writes the state where it is its turn; `whole` does both, for few rows, where a
launch costs more than what a group's heads do over and over.

Legend: B rows, S slots, H heads, K key-value heads, G = H / K, P head dim, N state, W convolution width,
C conv channels, D inputs held.

Usage: through ``mixer.mix``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from thinkfast.kernels.triton.launch import trigger, wait
from thinkfast.kernels.triton.norm import row_inverse_rms
from thinkfast.kernels.triton.silu import silu


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
def _conv(now, tap, past):
    """Convolved and activated channels: the newest of their input with its tap, and what ``_past`` has."""
    return silu(past + now.to(tl.float32) * tap)


@triton.jit
def _phase(drawn, key, D: tl.constexpr):
    """Where the newest input stands in its ring, and how many inputs are held with it."""
    done = drawn - 1
    phase = (done + ((key >> 8) & 0xFF)) % D
    return phase, tl.minimum(done, phase) + 1


@triton.jit
def _row(ACTIVE, POSITION, KEY, DRAWN, b, D: tl.constexpr):
    """Slot, position and key of row ``b``, and its phase and count."""
    slot = tl.load(ACTIVE + b).to(tl.int64)
    key = tl.load(KEY + slot)
    phase, count = _phase(tl.load(DRAWN + slot), key, D)
    return slot, tl.load(POSITION + slot), key, phase, count


@triton.jit
def softplus(x) -> tl.tensor:
    """log(1 + exp(x)), x itself where that is all there is to it."""
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(x)))


@triton.jit
def _held(HELD, STEPS, ring, h, mine, there, H: tl.constexpr, K: tl.constexpr, P: tl.constexpr, N: tl.constexpr):
    """dt, B and x of the input at ``ring`` of the held ones; zeros where it is not ``there``."""
    p = tl.arange(0, P)
    n = tl.arange(0, N)
    HELD += ring * K * (P + N)
    step = tl.load(STEPS + ring * H + h, mask=mine & there, other=0.0)
    b = tl.load(HELD + P + n, mask=(n < N) & there, other=0.0)
    x = tl.load(HELD + p, mask=(p < P) & there, other=0.0)
    return step, b, x


@triton.jit
def _earlier(WEIGHT, cc, rest, gone, rate, ring, mine, there, step, b, x):
    """``rest`` and ``gone`` with the held input at ``ring``, if it is ``there``; its weight is noted."""
    weight = tl.exp(gone) * step
    tl.store(WEIGHT + ring, weight, mask=mine & there)
    inner = tl.sum(cc * b.to(tl.float32)[None, :], 1)
    return rest + (weight * inner)[:, None] * x.to(tl.float32)[None, :], gone + step * rate


@triton.jit
def prepare(
    PROJECTED, CONV, HELD, STEPS, TAPS, CBIAS, RATE, DTB, SKIP, READ, REST, WEIGHT, INVERSE, GIVEN,
    ACTIVE, POSITION, DRAWN, KEY, eps, width,
    H: tl.constexpr, K: tl.constexpr, P: tl.constexpr, N: tl.constexpr, W: tl.constexpr, D: tl.constexpr,
    GP: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """What a step does besides the state, for a row and a group of heads: see MixerWork. With WIDE, rows come
    undivided, from GIVEN rows of that width.
    """
    G: tl.constexpr = H // K
    C: tl.constexpr = K * P + K * N + H * N
    tl.static_assert(D == 4)
    b = tl.program_id(0).to(tl.int64)
    kv = tl.program_id(1)
    p = tl.arange(0, P)
    n = tl.arange(0, N)
    g = tl.arange(0, GP)
    h = kv * G + g
    mine = g < G
    slot, position, _, phase, count = _row(ACTIVE, POSITION, KEY, DRAWN, b, D)
    HELD += slot * D * K * (P + N) + kv * (P + N)
    STEPS += slot * D * H
    CONV += slot * W * C
    rate = tl.load(RATE + h, mask=mine, other=0.0)
    bias = tl.load(DTB + h, mask=mine, other=0.0)
    skip = tl.load(SKIP + h, mask=mine, other=0.0)
    xs = kv * P + p
    bs = K * P + kv * N + n
    cs = K * P + K * N + h[:, None] * N + n[None, :]
    every = mine[:, None] & (n[None, :] < N)
    # Only this kernel writes the rings, a step apart: they may be read before what other kernels have to say.
    x = _past(CONV, TAPS, CBIAS, xs, p < P, position, C, W)
    bb = _past(CONV, TAPS, CBIAS, bs, n < N, position, C, W)
    cc = _past(CONV, TAPS, CBIAS, cs, every, position, C, W)
    LAST = TAPS + (W - 1) * C
    tap_x = tl.load(LAST + xs, mask=p < P, other=0.0)
    tap_b = tl.load(LAST + bs, mask=n < N, other=0.0)
    tap_c = tl.load(LAST + cs, mask=every, other=0.0)
    step1, b1, x1 = _held(HELD, STEPS, phase - 1, h, mine, 1 < count, H, K, P, N)
    step2, b2, x2 = _held(HELD, STEPS, phase - 2, h, mine, 2 < count, H, K, P, N)
    step3, b3, x3 = _held(HELD, STEPS, phase - 3, h, mine, 3 < count, H, K, P, N)
    if WIDE > 0:
        # What was projected was there before the projection began.
        inverse = row_inverse_rms(GIVEN + b * WIDE, eps, WIDE, 1024)
    wait(PDL)
    trigger(PDL)
    # All that is read comes before anything is written: a load behind a store waits for what is stored.
    row = PROJECTED + b * width + H * P
    now_x = tl.load(row + xs, mask=p < P, other=0.0)
    now_b = tl.load(row + bs, mask=n < N, other=0.0)
    now_c = tl.load(row + cs, mask=every, other=0.0)
    raw = tl.load(row + C + h, mask=mine, other=0.0).to(tl.float32)
    if WIDE > 0:
        raw *= inverse
        # The ring holds what a norm in front would have made of them.
        now_x = (now_x.to(tl.float32) * inverse).to(CONV.dtype.element_ty)
        now_b = (now_b.to(tl.float32) * inverse).to(CONV.dtype.element_ty)
        now_c = (now_c.to(tl.float32) * inverse).to(CONV.dtype.element_ty)
        tl.store(INVERSE + b, inverse, mask=kv == 0)
    dt = softplus(raw + bias)
    x = _conv(now_x, tap_x, x).to(HELD.dtype.element_ty)
    bb = _conv(now_b, tap_b, bb).to(HELD.dtype.element_ty)
    cc = _conv(now_c, tap_c, cc).to(READ.dtype.element_ty)
    RING = CONV + (position % W) * C
    tl.store(RING + xs, now_x, mask=p < P)
    tl.store(RING + bs, now_b, mask=n < N)
    tl.store(RING + cs, now_c, mask=every)
    tl.store(READ + b * H * N + h[:, None] * N + n[None, :], cc, mask=mine[:, None])
    cc = cc.to(tl.float32)
    tl.store(HELD + phase * K * (P + N) + p, x)
    tl.store(HELD + phase * K * (P + N) + P + n, bb)
    tl.store(STEPS + phase * H + h, dt, mask=mine)
    x = x.to(tl.float32)
    inner = tl.sum(cc * bb.to(tl.float32)[None, :], 1)
    rest = (dt * inner + skip)[:, None] * x[None, :]
    WEIGHT += b * H * (D + 1) + h * (D + 1)
    tl.store(WEIGHT + phase, dt, mask=mine)
    gone = dt * rate
    rest, gone = _earlier(WEIGHT, cc, rest, gone, rate, phase - 1, mine, 1 < count, step1, b1, x1)
    rest, gone = _earlier(WEIGHT, cc, rest, gone, rate, phase - 2, mine, 2 < count, step2, b2, x2)
    rest, gone = _earlier(WEIGHT, cc, rest, gone, rate, phase - 3, mine, 3 < count, step3, b3, x3)
    tl.store(WEIGHT + D, tl.exp(gone), mask=mine)
    tl.store(REST + b * H * P + h[:, None] * P + p[None, :], rest, mask=mine[:, None])


@triton.jit
def _per_head(rows, EACH: tl.constexpr, P: tl.constexpr, TOP: tl.constexpr):
    """Sum (TOP: maximum) of each head's P entries of rows [EACH P], given to all of them."""
    heads = tl.reshape(rows, (EACH, P))
    found = tl.max(heads, 1) if TOP else tl.sum(heads, 1)
    return tl.reshape(tl.broadcast_to(found[:, None], (EACH, P)), (EACH * P,))


@triton.jit
def _narrowed(s, SCALE, seed, lines, p, n, EACH: tl.constexpr, P: tl.constexpr, NARROW: tl.constexpr):
    """A new state [EACH P, N] rounded at random to what it is written as; in fp8 with its heads' scales."""
    if NARROW > 0:
        columns = _noise(seed ^ (n.to(tl.uint32) * 0x9E3779B1))
        noise = (_noise(seed + lines.to(tl.uint32))[:, None] ^ columns[None, :]) * 0x9E3779B1
    if NARROW == 1:
        bits = s.to(tl.uint32, bitcast=True) + (noise >> 16)
        s = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    if NARROW == 2:
        top = tl.maximum(_per_head(tl.max(tl.abs(s), 1), EACH, P, True), 1e-20)
        tl.store(SCALE, top * (1.0 / 448.0), mask=p == 0)
        s = s * (448.0 / top)[:, None]
        # e4m3 keeps 3 bits of mantissa; below 2 ** -6 its steps are 2 ** -9.
        bits = s.to(tl.uint32, bitcast=True) + (noise >> 12)
        normal = (bits & 0xFFF00000).to(tl.float32, bitcast=True)
        share = (noise >> 8).to(tl.float32) * (1.0 / 16777216.0)
        small = tl.floor(s * 512.0 + share) * (1.0 / 512.0)
        s = tl.where(tl.abs(s) < 0.015625, small, normal)
        s = tl.minimum(tl.maximum(s, -448.0), 448.0)
    return s


@triton.jit
def _seed(position, key, layer):
    seed = (key ^ (key >> 32)).to(tl.uint32) + (position * 0x9E3779B1).to(tl.uint32)
    return _noise(seed + layer.to(tl.uint32) * 0x85EBCA6B)


@triton.jit(do_not_specialize=["layer"])
def advance(
    PROJECTED, SSM, SCALE, HELD, NORM, READ, REST, WEIGHT, INVERSE, OUT, ACTIVE, POSITION, DRAWN, KEY, layer, eps,
    width, H: tl.constexpr, K: tl.constexpr, P: tl.constexpr, N: tl.constexpr, D: tl.constexpr, EACH: tl.constexpr,
    NARROW: tl.constexpr, UNDIVIDED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Out of the state and what ``prepare`` has left; EACH heads of a row."""
    b = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * EACH
    kv = first // (H // K)
    r = tl.arange(0, EACH * P)
    n = tl.arange(0, N)
    p = r % P
    h = first + r // P
    slot = tl.load(ACTIVE + b).to(tl.int64)
    where = SSM + (slot * H * P + first * P + r[:, None]) * N + n[None, :]
    # No kernel of this step has written the state: it may come before what they have to say.
    s = tl.load(where).to(tl.float32)
    if NARROW == 2:
        s = s * tl.load(SCALE + slot * H + h)[:, None]
    norm = tl.load(NORM + first * P + r)
    wait(PDL)
    # Every line of the tile reads its head's C, so that it lies as the state does and nothing has to be rearranged. All
    # loads are on their way before anything is: a barrier holds up those behind it, and so does a number that decides a
    # branch. The compiler keeps them in front of the launch below.
    cc = tl.load(READ + (b * H + h)[:, None] * N + n[None, :])
    rest = tl.load(REST + (b * H + first) * P + r)
    z = tl.load(PROJECTED + b * width + first * P + r).to(tl.float32)
    if UNDIVIDED:
        z *= tl.load(INVERSE + b)
    decay = tl.load(WEIGHT + (b * H + h) * (D + 1) + D)
    key = tl.load(KEY + slot)
    drawn = tl.load(DRAWN + slot)
    position = tl.load(POSITION + slot)
    trigger(PDL)
    y = decay * tl.sum(s * cc.to(tl.float32), 1) + rest
    y = y * silu(z)
    y = y * tl.rsqrt(_per_head(y * y, EACH, P, False) / P + eps) * norm
    tl.store(OUT + (b * H + first) * P + r, y.to(OUT.dtype.element_ty))
    phase, count = _phase(drawn, key, D)
    if phase == D - 1:
        s = s * decay[:, None]
        HELD += slot * D * K * (P + N) + kv * (P + N)
        for j in range(D - count, D):
            xs = tl.load(HELD + j * K * (P + N) + p).to(tl.float32) * tl.load(WEIGHT + (b * H + h) * (D + 1) + j)
            bs = tl.load(HELD + j * K * (P + N) + P + n[None, :] + 0 * r[:, None]).to(tl.float32)
            s += xs[:, None] * bs
        seed = _seed(position, key, layer)
        s = _narrowed(s, SCALE + slot * H + h, seed, first * P + r, p, n, EACH, P, NARROW)
        tl.store(where, s.to(SSM.dtype.element_ty))


@triton.jit
def _one_more(y, gone, cc, rate, step, b, x):
    """``y`` and ``gone`` with one held input, whose weight comes back with them."""
    weight = tl.exp(gone) * step
    x = x.to(tl.float32) * weight
    return y + tl.sum(cc * b.to(tl.float32), 0) * x, gone + step * rate, x


@triton.jit(do_not_specialize=["layer"])
def whole(
    PROJECTED, CONV, SSM, SCALE, HELD, STEPS, TAPS, CBIAS, RATE, DTB, SKIP, NORM, OUT, ACTIVE, POSITION, DRAWN, KEY,
    layer, eps, width,
    H: tl.constexpr, K: tl.constexpr, P: tl.constexpr, N: tl.constexpr, W: tl.constexpr, D: tl.constexpr,
    NARROW: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """``prepare`` and ``advance`` for one head of a row; what a group shares is worked out by each of its heads."""
    G: tl.constexpr = H // K
    C: tl.constexpr = K * P + K * N + H * N
    tl.static_assert(D == 4)
    b = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    kv = h // G
    # The first head of a group keeps what the group shares.
    keeps = h % G == 0
    p = tl.arange(0, P)
    n = tl.arange(0, N)
    slot, position, key, phase, count = _row(ACTIVE, POSITION, KEY, DRAWN, b, D)
    HELD += slot * D * K * (P + N) + kv * (P + N)
    STEPS += slot * D * H
    CONV += slot * W * C
    rate, bias, skip = tl.load(RATE + h), tl.load(DTB + h), tl.load(SKIP + h)
    xs, bs, cs = kv * P + p, K * P + kv * N + n, K * P + K * N + h * N + n
    # As in the two kernels: rings and state may be read before what other kernels have to say.
    x = _past(CONV, TAPS, CBIAS, xs, p < P, position, C, W)
    bb = _past(CONV, TAPS, CBIAS, bs, n < N, position, C, W)
    cc = _past(CONV, TAPS, CBIAS, cs, n < N, position, C, W)
    LAST = TAPS + (W - 1) * C
    tap_x = tl.load(LAST + xs, mask=p < P, other=0.0)
    tap_b = tl.load(LAST + bs, mask=n < N, other=0.0)
    tap_c = tl.load(LAST + cs, mask=n < N, other=0.0)
    step1, b1, x1 = _held(HELD, STEPS, phase - 1, h, True, 1 < count, H, K, P, N)
    step2, b2, x2 = _held(HELD, STEPS, phase - 2, h, True, 2 < count, H, K, P, N)
    step3, b3, x3 = _held(HELD, STEPS, phase - 3, h, True, 3 < count, H, K, P, N)
    where = SSM + (slot * H * P + h * P + p[:, None]) * N + n[None, :]
    s = tl.load(where).to(tl.float32)
    if NARROW == 2:
        s = s * tl.load(SCALE + slot * H + h)
    norm = tl.load(NORM + h * P + p)
    wait(PDL)
    trigger(PDL)
    row = PROJECTED + b * width + H * P
    now_x = tl.load(row + xs, mask=p < P, other=0.0)
    now_b = tl.load(row + bs, mask=n < N, other=0.0)
    now_c = tl.load(row + cs, mask=n < N, other=0.0)
    z = tl.load(PROJECTED + b * width + h * P + p)
    dt = softplus(tl.load(row + C + h).to(tl.float32) + bias)
    x = _conv(now_x, tap_x, x).to(HELD.dtype.element_ty)
    bb = _conv(now_b, tap_b, bb).to(HELD.dtype.element_ty)
    cc = _conv(now_c, tap_c, cc).to(OUT.dtype.element_ty).to(tl.float32)
    RING = CONV + (position % W) * C
    tl.store(RING + xs, now_x, mask=(p < P) & keeps)
    tl.store(RING + bs, now_b, mask=(n < N) & keeps)
    tl.store(RING + cs, now_c, mask=n < N)
    tl.store(HELD + phase * K * (P + N) + p, x, mask=(p < P) & keeps)
    tl.store(HELD + phase * K * (P + N) + P + n, bb, mask=(n < N) & keeps)
    tl.store(STEPS + phase * H + h, dt)
    y = skip * x.to(tl.float32)
    y, gone, x = _one_more(y, 0.0 * dt, cc, rate, dt, bb, x)
    y, gone, x1 = _one_more(y, gone, cc, rate, step1, b1, x1)
    y, gone, x2 = _one_more(y, gone, cc, rate, step2, b2, x2)
    y, gone, x3 = _one_more(y, gone, cc, rate, step3, b3, x3)
    s = s * tl.exp(gone)
    y += tl.sum(s * cc[None, :], 1)
    y = y * silu(z.to(tl.float32))
    y = y * tl.rsqrt(tl.sum(y * y, 0) / P + eps) * norm
    tl.store(OUT + (b * H + h) * P + p, y.to(OUT.dtype.element_ty))
    if phase == D - 1:
        s += x[:, None] * bb.to(tl.float32)[None, :] + x1[:, None] * b1.to(tl.float32)[None, :]
        s += x2[:, None] * b2.to(tl.float32)[None, :] + x3[:, None] * b3.to(tl.float32)[None, :]
        seed = _seed(position, key, layer)
        s = _narrowed(s, SCALE + slot * H + h + 0 * p, seed, h * P + p, p, n, 1, P, NARROW)
        tl.store(where, s.to(SSM.dtype.element_ty))
