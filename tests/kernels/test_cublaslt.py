"""Every algorithm that the library names against torch in fp32, and what may not be handed to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from thinkfast.kernels import cublaslt
from thinkfast.kernels.cublaslt import WORKSPACE, CublasLt, Shape, load, reference, serves

# Rows, outputs, inputs: a Llama-3.2-1B's at many rows, part of its head, and widths that no tile divides.
SHAPES = [(256, 3232, 2048), (512, 2048, 8192), (192, 2048, 2048), (130, 65536, 256), (300, 200, 576), (1, 896, 4864)]


def operands(shape: tuple[int, int, int], gap: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and out, whose lines are ``gap`` longer than they need be and poisoned there."""
    rows, n, k = shape
    make = torch.Generator("cuda").manual_seed(rows + n + k)
    x, weight, wide = (
        torch.randn(size, device="cuda", generator=make).bfloat16() for size in ((rows, k), (n, k), (rows, n + gap))
    )
    wide[:, n:] = float("nan")
    return x, weight * k**-0.5, wide[:, :n]


@pytest.fixture
def lt() -> CublasLt:
    found = load()
    assert found is not None, "torch has a GPU of NVIDIA's, so it has this library"
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_algorithms_agree_with_torch(shape: tuple[int, int, int], add: bool, lt: CublasLt) -> None:
    x, weight, out = operands(shape, gap=128)
    assert serves(x, weight, out)
    work = torch.empty(WORKSPACE, dtype=torch.uint8, device="cuda")
    problem = lt.problem(Shape.of(x, weight, out, add))
    named = problem.algorithms()
    assert named
    algorithms = [*named, *(variant for algorithm in named[:2] for variant in problem.variants(algorithm))]
    assert len(algorithms) > len(named)
    assert len(set(algorithms)) == len(algorithms)
    before = out.clone()
    want = x.double() @ weight.double().t() + (before.double() if add else 0.0)
    out.copy_(before)
    reference(x, weight, out, add)
    torchs = float((out.double() - want).norm() / want.norm())
    for algorithm in algorithms:
        out.copy_(before)
        problem.run(algorithm, x, weight, out, work)
        # A rounding to bf16 is 2 ** -8 at most; shares of K rounded before they are added would show beside it.
        assert float((out.double() - want).norm() / want.norm()) < 1.1 * torchs < 4e-3
        first = out.clone()
        for _ in range(3):
            out.copy_(before)
            problem.run(algorithm, x, weight, out, work)
            assert torch.equal(out, first), "sums are added up in another order each time"
        assert out._base is not None
        assert out._base[:, shape[1] :].isnan().all(), "written beyond a line"


@pytest.mark.gpu
def test_what_is_no_algorithm_is_not_taken(lt: CublasLt) -> None:
    x, weight, out = operands(SHAPES[2])
    problem = lt.problem(Shape.of(x, weight, out, False))
    assert problem.takes(problem.algorithms()[0])
    assert not problem.takes(b"\xff" * 64)


def test_what_the_library_refuses_is_an_error() -> None:
    CublasLt.check(0)
    with pytest.raises(RuntimeError, match="cuBLASLt says 7"):
        CublasLt.check(7)


@pytest.mark.gpu
def test_what_is_not_served() -> None:
    x, weight, out = operands((64, 256, 512))
    assert serves(x, weight, out)
    assert not serves(x.float(), weight.float(), out.float())
    assert not serves(x, weight, out.float())
    assert not serves(x[:, 8:], weight[:, 8:], out), "begins at 16 bytes, and lines have gaps"
    assert not serves(x, weight, out.t().contiguous().t())
    assert not serves(x.cpu(), weight.cpu(), out.cpu())


def test_without_a_gpu_there_is_nothing_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(4, 8, dtype=torch.bfloat16)
    assert not serves(x, torch.zeros(2, 8, dtype=torch.bfloat16), torch.zeros(4, 2, dtype=torch.bfloat16))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load() is None
    # A build for another maker's GPUs, and one whose library is not where it should be.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert load() is None
    monkeypatch.setattr(torch.version, "cuda", "0.0")
    assert load() is None


def test_a_library_without_what_is_needed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def __getattr__(self, name: str) -> object:
            raise AttributeError(name)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cublaslt.ctypes, "CDLL", lambda name: Old())
    assert load() is None


def test_the_reference_adds_where_it_is_told_to() -> None:
    make = torch.Generator().manual_seed(1)
    x, weight, out = (torch.randn(size, generator=make) for size in ((3, 5), (4, 5), (3, 4)))
    before, want = out.clone(), x @ weight.t()
    reference(x, weight, out, add=True)
    torch.testing.assert_close(out, before + want)
    reference(x, weight, out, add=False)
    torch.testing.assert_close(out, want)
