"""Every kernel of the decode step against its torch reference, on random inputs with unwritten memory poisoned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")

from thinkfast.kernels.triton.attention import TILE_ROWS, KVLayer, KVRows, SplitPlan, attend, attend_reference
from thinkfast.kernels.triton.mixer import (
    HOLD,
    MixerLayer,
    MixerRows,
    MixerState,
    MixerWork,
    Tiling,
    Undivided,
    mix,
    mix_reference,
    tiling,
)
from thinkfast.kernels.triton.norm import (
    add_norm,
    add_norm_reference,
    embed_norm,
    embed_norm_reference,
    inverse_rms,
    inverse_rms_reference,
)
from thinkfast.kernels.triton.rounding import round_rows, rounded_reference
from thinkfast.kernels.triton.swiglu import swiglu, swiglu_reference

# The interpreter turns arrays of one element into numbers, of which numpy 2.3 warns.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NAN = float("nan")
# Triton's interpreter multiplies bf16 matrices as the integers that carry them, and takes a tenth of a second for each
# program: it gets lists of its own, in which every branch is met once and no case is a skip.
ON_GPU = torch.cuda.is_available()
FLOATS = [torch.float32, torch.bfloat16, torch.float8_e4m3fn]
ATTENTION = [(2, 3, 16, 16, 3, False), (1, 8, 32, 16, 1, True), (3, 1, 16, 16, 1, False), (2, 4, 64, 16, 2, True)]
SIZES = [(4, 2, 16, 16), (2, 2, 16, 32), (2, 1, 16, 128)]
MIXERS: list[Any] = [(*sizes, dtype, None, 2) for sizes, dtype in zip(SIZES, FLOATS, strict=True)]
# In one kernel, as so few rows are, and in two.
MIXERS += [(4, 2, 16, 16, dtype, Tiling(each), 2) for dtype, each in zip(FLOATS, (1, 2, 1), strict=True)]
KINDS = [(torch.float32, False)]
if ON_GPU:
    SPLITS = [(1, False), (3, False), (1, True), (2, True)]
    HEADS = [(2, 3, 16, 16), (1, 8, 32, 16), (3, 1, 16, 16), (2, 4, 64, 16)]
    ATTENTION = [(*heads, *split) for heads in HEADS for split in SPLITS]
    # Heads of real models on pages of the engine's size: groups up to 8, heads of 64 and 128.
    HEADS = [(2, 2, 128, 64), (4, 4, 64, 64), (1, 5, 64, 64), (1, 6, 128, 64), (1, 7, 64, 64), (1, 8, 128, 64)]
    ATTENTION += [(*heads, *split) for heads in HEADS for split in ((3, False), (2, True))]
    KINDS += [(torch.bfloat16, True)]
    SIZES = [(6, 2, 16, 16), (4, 4, 16, 32), (2, 1, 16, 128), (8, 2, 32, 64), (8, 8, 128, 16)]
    # In one kernel and in two, a head a program and as the step cuts them; and every batch cut in a way of its own.
    WAYS = [None, Tiling(1, 2, 4), Tiling(1, 4, whole=True)]
    MIXERS = [(*sizes, dtype, way, 47) for sizes in SIZES for dtype in FLOATS for way in WAYS]
    BATCHES = (1, 8, 9, 17, 33, 64, 65, 129, 256, 512, 1024)
    MIXERS += [(32, 8, 64, n, torch.bfloat16, None, rows) for n in (16, 64) for rows in BATCHES]


def close(found: Tensor, want: Tensor, bound: float) -> None:
    error = (found.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30)
    assert error < bound, float(error)


def tolerance(dtype: torch.dtype) -> float:
    return 1e-2 if dtype == torch.bfloat16 else 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [32, 160, 576])
def test_norms_and_gate(width: int, dtype: torch.dtype, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(width)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    residual, update, weight, table = random(5, width), random(5, width), random(width), random(11, width)
    tokens = torch.randint(0, 11, (8,), generator=generator, dtype=torch.int32).to(device)
    active = torch.tensor([3, 0, 7, 2, 2], dtype=torch.int32, device=device)
    pairs = []
    for add, embed in ((add_norm, embed_norm), (add_norm_reference, embed_norm_reference)):
        x, y = residual.clone(), torch.full_like(residual, NAN)
        add(x, update, weight, y, 1e-5)
        e, f = torch.full_like(x, NAN), torch.full_like(x, NAN)
        turn = torch.full((1,), 6, dtype=torch.int32, device=device)
        embed(table, tokens, active, weight, e, f, 1e-5, turn)
        assert turn.tolist() == [7]
        pairs.append((x, y, e, f))
    for found, want in zip(*pairs, strict=True):
        close(found, want, tolerance(dtype))
    found_inverse, want_inverse = (torch.full((5,), NAN, device=device) for _ in range(2))
    inverse_rms(residual, found_inverse, 1e-5)
    inverse_rms_reference(residual, want_inverse, 1e-5)
    close(found_inverse, want_inverse, 1e-5)
    both, out, want = random(5, 2 * width), torch.full_like(residual, NAN), torch.empty_like(residual)
    swiglu(both, out)
    swiglu_reference(both, want)
    close(out, want, tolerance(dtype))


@pytest.mark.parametrize(("width", "dtype"), [(160, torch.float32), (576, torch.bfloat16)])
def test_rows_in_eight_bits(width: int, dtype: torch.dtype, device: torch.device) -> None:
    """A row of zeros among them; an entry on the edge between two e4m3 numbers may fall to either side."""
    generator = torch.Generator().manual_seed(width)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    residual, update, weight = random(5, width), random(5, width), random(width)
    both, mixed = random(5, 2 * width), random(5, width)
    mixed[1] = 0
    pairs = []
    for add, gate, rounding in (
        (add_norm, swiglu, round_rows),
        (add_norm_reference, swiglu_reference, rounded_reference),
    ):
        outs = [torch.empty(5, width, dtype=torch.float8_e4m3fn, device=device) for _ in range(3)]
        scales = [torch.full((5, 1), NAN, device=device) for _ in range(3)]
        add(residual.clone(), update, weight, outs[0], 1e-5, scales[0])
        gate(both, outs[1], scales[1])
        rounding(mixed.float() if rounding is rounded_reference else mixed, outs[2], scales[2])
        pairs.append((outs, scales))
    (found, found_scales), (want, want_scales) = pairs
    for one, scale, other, wanted in zip(found, found_scales, want, want_scales, strict=True):
        close(scale, wanted, tolerance(dtype))
        # An entry that falls to the other side is off by 2^-3 at most: of fp32 few do, of bf16 one in thirty.
        close(one.float() * scale, other.float() * wanted, 5e-3 if dtype == torch.float32 else 3e-2)
    assert (found[2][1].float() == 0).all()


class Context:
    """Rows with contexts of their own and shared ones on random pages; unused memory is NaN."""

    def __init__(self, kv: int, group: int, p: int, page: int, dtype: torch.dtype, device: torch.device) -> None:
        g = torch.Generator().manual_seed(kv * p)
        # (tokens shared, tokens before the newest): alone, sharing 5 tokens, sharing 2 pages and more.
        rows = [(0, 0), (0, 1), (5, 5), (0, page), (5, 9), (2 * page, 2 * page), (0, 3 * page - 1)]
        rows += [(2 * page, 3 * page + i) for i in range(TILE_ROWS + 2)] + [(5, 6)]
        b, per = len(rows), 8
        order = torch.randperm(b * per + 8, generator=g).tolist()
        self.shared = {5: [order.pop() for _ in range(-(-5 // page))], 2 * page: [order.pop(), order.pop()]}
        slots = torch.randperm(b + 3, generator=g)[:b]
        size = b + 3
        self.position, self.in_front = torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64)
        table = torch.zeros(size, per, dtype=torch.int32)
        shape = (b * per + 8, kv, page, p)
        self.k, self.v = torch.full(shape, NAN).to(dtype), torch.full(shape, NAN).to(dtype)
        for (shared, pos), slot in zip(rows, slots.tolist(), strict=True):
            self.position[slot], self.in_front[slot] = pos, shared
            front = self.shared.get(shared, []) if shared else []
            own = [order.pop() for _ in range(-(-(pos - shared + 1) // page))]
            table[slot, : len(front) + len(own)] = torch.tensor(front + own)
            for pages, count in ((front, shared), (own, pos - shared)):
                for t in range(count):
                    for pool in (self.k, self.v):
                        if not pool[pages[t // page], 0, t % page, 0].isfinite():
                            pool[pages[t // page], :, t % page] = torch.randn(kv, p, generator=g).to(dtype)
        self.qkv = torch.randn(b, (group + 2) * kv * p, generator=g).to(device, dtype)
        angles = torch.arange(int(self.position.max()) + 1)[:, None] * torch.rand(p // 2, generator=g)
        self.k, self.v = self.k.to(device), self.v.to(device)
        moved = (self.position, self.in_front, table, angles.cos(), angles.sin())
        self.rows = KVRows(slots.to(device, torch.int32), *(t.to(device).contiguous() for t in moved))
        members = {n: [i for i, (shared, _) in enumerate(rows) if shared == n] for n in self.shared}
        tiles = [m[i : i + TILE_ROWS] for m in members.values() for i in range(0, len(m), TILE_ROWS)] + [[]]
        self.tiles = torch.tensor([t + [-1] * (TILE_ROWS - len(t)) for t in tiles], dtype=torch.int32, device=device)
        self.norms = [(1 + 0.1 * torch.randn(p, generator=g)).to(device, dtype) for _ in range(2)]

    def plan(self, splits: int, prompt_splits: int, tiled: bool, heads: int, p: int) -> SplitPlan:
        count = self.qkv.shape[0] * (splits + prompt_splits)
        parts = torch.full((count, heads, p), NAN, device=self.qkv.device)
        return SplitPlan(splits, prompt_splits, self.tiles if tiled else None, parts, parts[:, :, 0].contiguous())


@pytest.mark.parametrize(("kv", "group", "p", "page", "splits", "tiled"), ATTENTION)
@pytest.mark.parametrize(("dtype", "norm"), KINDS)
def test_attention(
    kv: int,
    group: int,
    p: int,
    page: int,
    splits: int,
    tiled: bool,
    dtype: torch.dtype,
    norm: bool,
    device: torch.device,
) -> None:
    context = Context(kv, group, p, page, dtype, device)
    heads = kv * group
    found, caches = [], []
    for run in (attend, attend_reference):
        layer = KVLayer(context.k.clone(), context.v.clone(), *(context.norms if norm else ()))
        out = torch.full((context.qkv.shape[0], heads * p), NAN, dtype=dtype, device=device)
        run(context.qkv, layer, context.rows, context.plan(splits, 2, tiled, heads, p), out, p**-0.5, 1e-5)
        found.append(out)
        caches.append(torch.stack((layer.k, layer.v)).nan_to_num(7.0))
    close(found[0], found[1], tolerance(dtype))
    close(caches[0], caches[1], tolerance(dtype))


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


@pytest.mark.parametrize("wide", [0, 1100])
@pytest.mark.parametrize(("heads", "kv", "p", "n", "ssm", "cut", "count"), MIXERS)
def test_mixer(
    heads: int,
    kv: int,
    p: int,
    n: int,
    ssm: torch.dtype,
    cut: Tiling | None,
    count: int,
    wide: int,
    device: torch.device,
) -> None:
    """Enough steps that every row writes its state more than once; the reference keeps it in fp32 throughout. Rows come
    normed, or as the projection of so wide a residual.
    """
    slots = count + 3
    active = torch.randperm(slots, generator=torch.Generator().manual_seed(2))[:count].tolist()
    layer, state = mixer(heads, kv, p, n, ssm, torch.float32, device, slots)
    plain = state.ssm.float() * (state.scale[..., None, None] if ssm == torch.float8_e4m3fn else 1)
    want_state = MixerState(plain, state.scale, state.conv.clone(), state.held.clone(), state.steps)
    rows = MixerRows(
        torch.tensor(active, dtype=torch.int32, device=device), torch.arange(1, slots + 1, device=device),
        torch.ones(slots, dtype=torch.int64, device=device), torch.arange(slots, device=device) * 911 + 5,
    )  # fmt: skip
    g = torch.Generator().manual_seed(1)
    width = heads * p + kv * (p + n) + heads * n + heads
    bound = {torch.float32: 3e-5, torch.bfloat16: 2e-2, torch.float8_e4m3fn: 8e-2}[ssm]
    for _ in range(2 * HOLD + 2):
        projected = torch.randn(len(active), width, generator=g).to(device)
        undivided = None
        if wide:
            residual = torch.randn(len(active), wide, generator=g) * torch.rand(len(active), 1, generator=g) * 9
            undivided = Undivided(residual.to(device), 1e-5)
            projected *= undivided.residual.square().mean(1, keepdim=True).sqrt()
        out, want = (torch.full((len(active), heads * p), NAN, device=device) for _ in range(2))
        work = MixerWork.make(len(active), heads, p, n, torch.float32, device)
        mix(projected, layer, state, rows, work, out, 1, cut, undivided)
        mix_reference(projected, layer, want_state, rows, want, 1, undivided)
        close(out, want, bound)
        rows.position.add_(1)
        rows.drawn.add_(1)
    # Which order squares are added up in shows in the last bit.
    torch.testing.assert_close(state.conv, want_state.conv, rtol=1e-5 if wide else 0, atol=0)


def test_one_kernel_is_for_few_rows_of_states_that_fit_its_registers() -> None:
    assert tiling(64, 4, 64, 16).whole
    assert tiling(8, 4, 64, 64).whole
    assert not tiling(65, 4, 64, 16).whole
    assert not tiling(9, 4, 64, 64).whole
    assert not tiling(1, 4, 64, 128).whole
    assert not tiling(1, 3, 128, 64).whole


def test_random_rounding_is_unbiased(device: torch.device) -> None:
    """A small input into a large state is lost by rounding to the nearest and kept, on average, by ours."""
    heads, p, n, slots = 1, 16, 16, 64 if device.type == "cuda" else 2
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        layer, state = mixer(heads, 1, p, n, dtype, torch.float32, device, slots)
        state.ssm.copy_(torch.ones(slots, heads, p, n))
        state.scale.fill_(1.0)
        layer.rates.fill_(-1e-9)
        layer.taps.zero_()
        layer.taps[-1] = 1.0
        layer.conv_bias.zero_()
        layer.dt_bias.fill_(-1.0)
        rows = MixerRows(
            torch.arange(slots, dtype=torch.int32, device=device), torch.zeros(slots, dtype=torch.int64, device=device),
            torch.ones(slots, dtype=torch.int64, device=device), torch.arange(slots, device=device) * 7919,
        )  # fmt: skip
        projected = torch.full((slots, p + p + n + n + 1), 0.3, device=device)
        out = torch.empty(slots, heads * p, device=device)
        for _ in range(4 * HOLD):
            mix(projected, layer, state, rows, MixerWork.make(slots, heads, p, n, torch.float32, device), out)
            rows.position.add_(1)
            rows.drawn.add_(1)
        a = torch.nn.functional.silu(torch.tensor(0.3))
        each = float(a * a * torch.nn.functional.softplus(torch.tensor(0.3 - 1.0)))
        phase = ((4 * HOLD + ((rows.key >> 8) & 0xFF)) % HOLD).tolist()
        gained = state.ssm.float() * state.scale[..., None, None] - 1
        wanted = torch.tensor([each * (4 * HOLD - q) for q in phase], device=device)
        assert abs(float(gained.mean() / wanted.mean()) - 1) < 0.15, dtype
        nearest = (torch.ones(1) + each * HOLD).to(dtype).float() - 1
        assert nearest == 0 or dtype == torch.bfloat16


def test_hold_and_ring_indices_do_not_depend_on_the_batch(device: torch.device) -> None:
    layer, state = mixer(4, 2, 16, 16, torch.bfloat16, torch.float32, device, 6)
    outs = []
    for active in ([1], [0, 1, 2, 3, 4, 5]):
        mine = MixerState(*(t.clone() for t in (state.ssm, state.scale, state.conv, state.held, state.steps)))
        position, drawn = torch.full((6,), 3, device=device), torch.ones(6, dtype=torch.int64, device=device)
        rows = MixerRows(torch.tensor(active, dtype=torch.int32, device=device), position, drawn, position * 77)
        g = torch.Generator().manual_seed(2)
        for _ in range(HOLD + 1):
            projected = (
                torch.randn(1, 4 * 16 + 64 + 64 + 4, generator=g).to(device).expand(len(active), -1).contiguous()
            )
            out = torch.empty(len(active), 64, device=device)
            mix(projected, layer, mine, rows, MixerWork.make(6, 4, 16, 16, torch.float32, device), out)
            position.add_(1)
            drawn.add_(1)
        outs.append((out[active.index(1)], mine.ssm[1]))
    for one, many in zip(*outs, strict=True):
        assert torch.equal(one.float(), many.float())
