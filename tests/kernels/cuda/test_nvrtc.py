"""The compiler of kernels in CUDA C++, without a GPU: what it makes, and what it says of a mistake."""

from __future__ import annotations

import ctypes

import pytest

from thinkfast.kernels.cuda.nvrtc import load, machine_code

SOURCE = 'extern "C" __global__ void set(int* out) { out[threadIdx.x] = N; }'


@pytest.fixture
def compiler() -> ctypes.CDLL:
    found = load()
    assert found is not None, "the development tools bring NVRTC"
    return found


def test_constants_reach_the_code(compiler: ctypes.CDLL) -> None:
    one, other = (machine_code(compiler, SOURCE, (9, 0), (("N", value),)) for value in (3, 4))
    assert one[:4] == b"\x7fELF"
    assert one != other


@pytest.mark.parametrize(
    ("source", "says"),
    [("no C++", "error"), (SOURCE.replace("= N", "= M"), "undefined"), (SOURCE.replace("{ ", "{ int a; "), "never")],
)
def test_what_is_wrong_is_said(source: str, says: str, compiler: ctypes.CDLL) -> None:
    with pytest.raises(RuntimeError, match=says):
        machine_code(compiler, source, (9, 0), (("N", 3),))
