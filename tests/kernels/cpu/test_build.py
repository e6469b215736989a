from __future__ import annotations

import ctypes
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from thinkfast.kernels.cpu import build
from thinkfast.kernels.cpu.build import SWITCH, Sizes, awaits_compiler, load_library

SIZES = Sizes(head_dim=8, page=64, group=1, mixer_group=1, state=4, taps=2)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINKFAST_CACHE", str(tmp_path))
    monkeypatch.delenv(SWITCH, raising=False)
    build._load.cache_clear()


def made_here() -> ctypes.CDLL:
    if build.compiler() is None:
        pytest.skip("no C compiler here")
    library = load_library(SIZES)
    assert library is not None, "the compiler that is here does not make the step"
    return library


def kept(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in tmp_path.glob("kernels/*"))


def test_it_is_compiled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert awaits_compiler(SIZES) is (build.compiler() is not None)
    assert made_here().columns() in (8, 16, 32)
    assert "compiling the decode step" in capsys.readouterr().err
    assert not awaits_compiler(SIZES)
    (made,) = kept(tmp_path)
    build._load.cache_clear()
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
    assert load_library(SIZES) is not None
    assert kept(tmp_path) == [made]
    assert capsys.readouterr().err == ""


def test_other_sizes_are_another_library(tmp_path: Path) -> None:
    made_here()
    assert load_library(replace(SIZES, state=8)) is not None
    assert len(kept(tmp_path)) == 2


def test_without_a_compiler_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert load_library(SIZES) is None


@pytest.mark.parametrize("compiler", ["false", "true"])  # one that fails, and one that leaves nothing
def test_a_compiler_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str) -> None:
    monkeypatch.setenv("CC", compiler)
    assert load_library(SIZES) is None
    assert kept(tmp_path) == []


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    assert not awaits_compiler(SIZES)
    assert load_library(SIZES) is None


@pytest.mark.parametrize("sizes", [replace(SIZES, head_dim=6), replace(SIZES, page=24)])
def test_sizes_that_are_no_whole_vectors_stay_with_torch(sizes: Sizes) -> None:
    assert load_library(sizes) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; we support Linux")
def test_it_runs_on_torchs_own_threads() -> None:
    """Two OpenMP runtimes in one process would spin against each other."""
    made_here()
    code = (
        "import torch\n"
        "from thinkfast.kernels.cpu.build import Sizes, load_library\n"
        f"load_library({SIZES!r})\n"
        "paths = {line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line.split()[-1]}\n"
        "print(len([p for p in paths if 'libgomp' in p or 'libomp' in p or 'libiomp' in p]))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1"]
