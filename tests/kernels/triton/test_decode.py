"""The norms, gates and mixers of a decode step against their torch references, with unwritten memory poisoned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")

from comparing import NAN, close, tolerance
from mixing import follow, mixer

from thinkfast.kernels.triton.mixer import (
    HOLD,
    MixerLayer,
    MixerRows,
    MixerState,
    MixerWork,
    Tiling,
    Undivided,
    mix,
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

# Triton's interpreter multiplies bf16 matrices as the integers that carry them, and takes a tenth of a second for each
# program: it gets lists of its own, in which every branch is met once and no case is a skip.
ON_GPU = torch.cuda.is_available()
# What activations in bf16 add to an error. Rounded to the nearest, a number is off by 2^-9 at most, 0.0008 in the mean:
# C is, which the reference keeps in fp32, and both results, 0.0014 together, and twice that where a row's sums cancel.
# The interpreter cuts off instead, by up to 2^-7 and 0.003 in the mean, x and B as well.
# A state that is rounded to bf16 at random is off by 0.0023 in the mean, which may show in all of y.
ROUNDED = 5e-3 if ON_GPU else 1.2e-2
FLOATS = F32, BF16, F8 = [torch.float32, torch.bfloat16, torch.float8_e4m3fn]
SIZES = [(4, 2, 16, 16), (2, 2, 16, 32), (2, 1, 16, 128)]
MIXERS: list[Any] = [(*sizes, dtype, F32, None, 2) for sizes, dtype in zip(SIZES, FLOATS, strict=True)]
# In one kernel, as so few rows are, and in two.
MIXERS += [(4, 2, 16, 16, dtype, F32, Tiling(each), 2) for dtype, each in zip(FLOATS, (1, 2, 1), strict=True)]
# Activations as the engine has them: heads of a real model, in one kernel and in two, and a group of eight.
MIXERS += [(1, 1, 64, 64, BF16, BF16, None, 1), (2, 1, 128, 128, BF16, BF16, None, 1)]
MIXERS += [(8, 1, 64, 16, F32, BF16, Tiling(2), 1)]
# Groups that are no power of two, in one kernel and in two.
MIXERS += [(group, 1, 16, 16, F32, F32, Tiling(1, whole=whole), 1) for group in (3, 5, 6, 7) for whole in (False, True)]
if ON_GPU:
    SIZES = [(6, 2, 16, 16), (4, 4, 16, 32), (2, 1, 16, 128), (8, 2, 32, 64), (8, 8, 128, 16)]
    # In one kernel and in two, a head a program and as the step cuts them; and every batch cut in a way of its own.
    WAYS = [None, Tiling(1, 2, 4), Tiling(1, 4, whole=True)]
    MIXERS = [(*sizes, dtype, F32, way, 47) for sizes in SIZES for dtype in FLOATS for way in WAYS]
    BATCHES = (1, 8, 9, 17, 33, 64, 65, 129, 256, 512, 1024)
    MIXERS += [(32, 8, 64, n, BF16, F32, None, rows) for n in (16, 64) for rows in BATCHES]
    # Heads, states and groups of real models in bf16, few rows (in one kernel, where the step has one) and many.
    GROUPS = (8, 4, 2, 1, 1, 2, 4, 8)
    HEADS = [(p, n) for p in (64, 128) for n in (16, 32, 64, 128)]
    REAL = [(2 * group, 2, *head) for group, head in zip(GROUPS, HEADS, strict=True)]
    MIXERS += [(*sizes, BF16, BF16, None, rows) for sizes in REAL for rows in (8, 300)]
    # SmolLM2's and Llama-3.2-3B's groups are of 3, Qwen2.5's of 6 and 7.
    ODD = [(3, 64), (5, 64), (6, 64), (7, 64), (3, 128), (5, 128), (6, 128), (7, 128)]
    STATES = (16, 64, 32, 16, 128, 16, 64, 16)
    ODD_SIZES = [(2 * group, 2, p, n) for (group, p), n in zip(ODD, STATES, strict=True)]
    MIXERS += [(*sizes, BF16, BF16, None, rows) for sizes in ODD_SIZES for rows in (8, 300)]
    # Other groups, and states of the other kinds.
    OTHERS = [(2 * group, 2, *head) for group, head in zip((1, 8, 4, 2, 4, 1, 8, 2), HEADS, strict=True)]
    MIXERS += [(*sizes, ssm, BF16, None, 40) for sizes, ssm in zip(OTHERS, (F8, F32) * 4, strict=True)]


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
    both, out, want = random(5, 2 * width), torch.full_like(residual, NAN), torch.empty_like(residual)
    swiglu(both, out)
    swiglu_reference(both, want)
    close(out, want, tolerance(dtype))


@pytest.mark.parametrize(
    ("rows", "width", "dtype"),
    [(1, 32, torch.float32), (64, 160, torch.bfloat16), (70, 576, torch.float32), (300, 2048, torch.bfloat16)],
)
def test_inverse_rms(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Of more rows than a program's, whose last has fewer; what is behind the last row stays."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.full((rows + 3, width), NAN, device=device, dtype=dtype)
    x[:rows] = torch.randn((rows, width), generator=generator).to(device, dtype)
    found, want = torch.full((rows + 3,), 7.0, device=device), torch.empty(rows, device=device)
    inverse_rms(x[:rows], found[:rows], 1e-5)
    inverse_rms_reference(x[:rows], want, 1e-5)
    close(found[:rows], want, 1e-5)
    assert (found[rows:] == 7.0).all()


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


@pytest.mark.parametrize("wide", [0, 1100])
@pytest.mark.parametrize(("heads", "kv", "p", "n", "ssm", "dtype", "cut", "count"), MIXERS)
def test_mixer(
    heads: int,
    kv: int,
    p: int,
    n: int,
    ssm: torch.dtype,
    dtype: torch.dtype,
    cut: Tiling | None,
    count: int,
    wide: int,
    device: torch.device,
) -> None:
    """Enough steps that every row writes its state more than once; the reference keeps it in fp32 throughout. Rows come
    normed, or as the projection of so wide a residual.
    """
    bound = {F32: 3e-5, BF16: 2e-2, F8: 8e-2}[ssm]
    if dtype == BF16:
        bound = ROUNDED + {F32: 0, BF16: 5e-3, F8: 8e-2}[ssm]

    def kernel(
        projected: Tensor,
        layer: MixerLayer,
        state: MixerState,
        rows: MixerRows,
        out: Tensor,
        number: int,
        undivided: Undivided | None,
    ) -> None:
        work = MixerWork.make(count, heads, p, n, dtype, device)
        mix(projected, layer, state, rows, work, out, number, cut, undivided)

    follow(kernel, (heads, kv, p, n), ssm, dtype, count, wide, bound, device)


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
