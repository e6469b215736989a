"""The compiler of kernels in CUDA C++, without a GPU: what it makes, and what it says of a mistake."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from thinkfast.kernels.cuda import nvrtc
from thinkfast.kernels.cuda.nvrtc import kept_code, load, machine_code
from thinkfast.models.sources.cache import cache_place

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


@pytest.mark.parametrize(("source", "says"), [("no C++", "error"), (SOURCE.replace("= N", "= M"), "undefined")])
def test_what_is_wrong_is_said(source: str, says: str, compiler: ctypes.CDLL) -> None:
    with pytest.raises(RuntimeError, match=says):
        machine_code(compiler, source, (9, 0), (("N", 3),))


def test_a_warning_stops_only_who_asks_for_it(compiler: ctypes.CDLL) -> None:
    unused = SOURCE.replace("{ ", "{ int a; ")
    assert machine_code(compiler, unused, (9, 0), (("N", 3),))
    with pytest.raises(RuntimeError, match="never"):
        machine_code(compiler, unused, (9, 0), (("N", 3),), strict=True)


def test_code_is_compiled_once(compiler: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINKFAST_CACHE", str(tmp_path))
    three = kept_code(compiler, SOURCE, (9, 0), (("N", 3),))
    assert three == machine_code(compiler, SOURCE, (9, 0), (("N", 3),))
    assert kept_code(compiler, SOURCE, (9, 0), (("N", 4),)) != three
    assert kept_code(compiler, SOURCE + " ", (9, 0), (("N", 3),)) != b""
    assert len(list(tmp_path.glob("kernels/*.cubin"))) == 3
    monkeypatch.setattr(nvrtc, "machine_code", lambda *_: pytest.fail("it is there"))
    assert kept_code(compiler, SOURCE, (9, 0), (("N", 3),)) == three


def test_without_a_home_nothing_is_kept(compiler: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("THINKFAST_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert cache_place("products.json") is None
    assert kept_code(compiler, SOURCE, (9, 0), (("N", 3),))[:4] == b"\x7fELF"


def test_a_cache_that_cannot_be_written_is_done_without(
    compiler: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("THINKFAST_CACHE", str(tmp_path / "file"))
    assert kept_code(compiler, SOURCE, (9, 0), (("N", 3),))[:4] == b"\x7fELF"
