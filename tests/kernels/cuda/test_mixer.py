"""A whole mixer in CUDA C++: against its reference and Triton's kernels, and, without a GPU, what it compiles for."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")

from comparing import close
from mixing import follow, mixer

from thinkfast.kernels.cuda.mixer import SOURCE, Shape, fused
from thinkfast.kernels.cuda.nvrtc import load, machine_code
from thinkfast.kernels.triton.mixer import HOLD, MixerRows, MixerState, MixerWork, Tiling, Undivided, mix

BF16 = torch.bfloat16
TAPS = 4
# Heads, key-value heads, P, N: Llama-3.2's, SmolLM2's and Qwen2.5's, and the ends of what is served.
SIZES = [
    (32, 8, 64, 16), (32, 8, 64, 64), (32, 8, 64, 128), (24, 8, 128, 16), (24, 8, 128, 128), (9, 3, 64, 16),
    (9, 3, 64, 64), (14, 2, 64, 16), (14, 2, 64, 64), (12, 2, 128, 16), (12, 2, 128, 64), (16, 2, 64, 32),
    (6, 6, 16, 16), (5, 1, 32, 32), (2, 2, 128, 32), (2, 1, 32, 256), (4, 1, 128, 128), (8, 1, 128, 64),
]  # fmt: skip
NOT_SERVED = [
    {"head_dim": 48}, {"state": 8}, {"state": 512}, {"head_dim": 128, "state": 256}, {"wide": 1100}, {"taps": 12},
    {"held": 2 * HOLD},
]  # fmt: skip
SOME = Shape(32, 8, 64, 16, TAPS, HOLD, 2048, False)
# C, x and B in bf16, and a state rounded at random, as in triton/test_decode.py.
BOUND = 1e-2


def odd(heads: int, kv: int, p: int, n: int) -> bool:
    """Whether rows of the projection begin at odd places."""
    return (heads * p + kv * (p + n) + heads * n + heads) % 2 == 1


@pytest.fixture
def compiler() -> ctypes.CDLL:
    found = load()
    assert found is not None, "the development tools bring NVRTC"
    return found


@pytest.mark.parametrize(("sizes", "wide"), [*product(SIZES, (0, 1104))])
def test_it_compiles_with_the_shared_memory_that_is_counted(
    sizes: tuple[int, int, int, int], wide: int, compiler: ctypes.CDLL
) -> None:
    """And not with less."""
    shape = Shape(*sizes, TAPS, HOLD, wide, odd(*sizes))
    assert shape.served
    assert machine_code(compiler, SOURCE.read_text(), (9, 0), shape.defines, strict=True)
    less = [(name, value - 512 if name == "SHARED" else value) for name, value in shape.defines]
    with pytest.raises(RuntimeError, match="counts less"):
        machine_code(compiler, SOURCE.read_text(), (9, 0), less)


@pytest.mark.parametrize("change", NOT_SERVED)
def test_it_does_not_serve(change: dict[str, int]) -> None:
    assert SOME.served
    assert not replace(SOME, **change).served


def test_it_serves_no_cpu() -> None:
    layer, state = mixer(2, 1, 16, 16, BF16, BF16, torch.device("cpu"), 40)
    assert fused(torch.zeros(40, 2 * 16 + 2 * 16 + 2 * 16 + 2, dtype=BF16), layer, state) is None


@pytest.mark.gpu
@pytest.mark.parametrize("wide", [0, 1104])
@pytest.mark.parametrize(
    ("sizes", "count"),
    [*product(SIZES, (17, 300)), *product(SIZES[:2], (33, 64, 65, 129, 256, 512, 1024))],
)
def test_mixer(sizes: tuple[int, int, int, int], count: int, wide: int) -> None:
    def kernel(projected: Tensor, layer, state, rows, out, number, undivided) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        found = fused(projected, layer, state, undivided)
        assert found is not None
        found(rows, out, number)

    follow(kernel, sizes, BF16, BF16, count, wide, BOUND, torch.device("cuda"))


def run(kernel: str, active: list[int], steps: int) -> tuple[Tensor, MixerState]:
    """Outputs of ``active`` rows of a small mixer in all ``steps``, and the states, by one of the kernels."""
    device, sizes = torch.device("cuda"), (8, 2, 64, 16)
    heads, kv, p, n = sizes
    layer, state = mixer(*sizes, BF16, BF16, device, 64)
    position = torch.arange(64, device=device)
    drawn = torch.ones(64, dtype=torch.int64, device=device)
    rows = MixerRows(torch.tensor(active, dtype=torch.int32, device=device), position, drawn, position * 7919)
    g = torch.Generator().manual_seed(1)
    work, outs = MixerWork.make(64, heads, p, n, BF16, device), []
    for _ in range(steps):
        # By slot, so that a row is given the same wherever it stands.
        projected = torch.randn(64, heads * p + kv * (p + n) + heads * n + heads, generator=g)[active].to(device, BF16)
        undivided = Undivided(torch.randn(64, 512, generator=g)[active].to(device, BF16), 1e-5)
        out = torch.empty(len(active), heads * p, dtype=BF16, device=device)
        if kernel == "fused":
            at_one = fused(projected, layer, state, undivided)
            assert at_one is not None
            at_one(rows, out, 3)
        else:
            mix(projected, layer, state, rows, work, out, 3, Tiling(1), undivided)
        position.add_(1)
        drawn.add_(1)
        outs.append(out)
    return torch.stack(outs), state


@pytest.mark.gpu
def test_states_are_rounded_as_by_triton() -> None:
    """The same random numbers: an entry differs only where sums in another order fall to another side."""
    active = list(range(0, 60, 2))
    (found, mine), (want, others) = run("fused", active, 2 * HOLD), run("triton", active, 2 * HOLD)
    close(found, want, 2e-3)
    written = others.ssm[active]
    assert (mine.ssm[active] != written).float().mean() < 2e-3
    first = mixer(8, 2, 64, 16, BF16, BF16, torch.device("cuda"), 64)[1].ssm
    assert (first[active] != written).float().mean() > 0.5
    # Other rows' states stay as they are.
    others_of_mine = [slot for slot in range(64) if slot not in active]
    assert torch.equal(first[others_of_mine], mine.ssm[others_of_mine])


@pytest.mark.gpu
def test_a_row_does_not_depend_on_the_batch() -> None:
    few, many = [*range(20, 40)], [*range(60)]
    (out, state), (outs, states) = run("fused", few, HOLD + 2), run("fused", many, HOLD + 2)
    assert torch.equal(out, outs[:, 20:40])
    assert torch.equal(state.ssm[few].view(torch.int16), states.ssm[few].view(torch.int16))


@pytest.mark.gpu
def test_few_rows_and_other_states_are_not_served() -> None:
    device = torch.device("cuda")
    for n, few in ((16, 16), (64, 8)):
        layer, state = mixer(4, 2, 64, n, BF16, BF16, device, 4)
        width = 4 * 64 + 2 * (64 + n) + 4 * n + 4
        for rows in (few, few + 1):
            given = torch.zeros(rows, width, dtype=BF16, device=device)
            assert (fused(given, layer, state) is not None) is (rows > few)
    layer, state = mixer(4, 2, 64, 16, torch.float8_e4m3fn, BF16, device, 4)
    assert fused(torch.zeros(64, 484, dtype=BF16, device=device), layer, state) is None
