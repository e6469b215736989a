"""Compile decode.c for this machine and these sizes, once, into the cache; no compiler is no error.

Why: with sizes as constants the compiler unrolls every inner loop into registers, and compiling takes about a second.
torch runs the same step without it, slower (docs/engine-cpu.md).

Usage: ``library = load_library(Sizes(head_dim=32, page=64, group=1, mixer_group=1, state=16, taps=4))``.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from thinkfast.models.sources.cache import cache_root
from thinkfast.models.sources.progress import Progress

_SOURCE = Path(__file__).with_name("decode.c")
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi")
_SECONDS = 60.0
# Set to 0 to keep the engine on its torch path.
SWITCH = "THINKFAST_NATIVE"


@dataclass(frozen=True, slots=True)
class Sizes:
    """The constants of decode.c: P, W, G of attention; G, N and convolution width of the mixers."""

    head_dim: int
    page: int
    group: int
    mixer_group: int
    state: int
    taps: int

    @property
    def served(self) -> bool:
        """Whether decode.c can be compiled for these: whole vectors of at least 16 bytes."""
        return self.head_dim % 4 == 0 and self.page % 16 == 0


def load_library(sizes: Sizes) -> ctypes.CDLL | None:
    """The compiled functions, or None where they cannot be had: no compiler, no OpenMP, or switched off."""
    return _load(sizes) if _wanted(sizes) else None


def awaits_compiler(sizes: Sizes) -> bool:
    """Whether ``load_library`` would have to compile first."""
    return _wanted(sizes) and (found := compiler()) is not None and not _target(found, _defines(sizes)).exists()


def _wanted(sizes: Sizes) -> bool:
    return os.environ.get(SWITCH) != "0" and sizes.served


def _defines(sizes: Sizes) -> list[str]:
    return [f"-D{name.upper()}={value}" for name, value in asdict(sizes).items()]


def _target(found: str, defines: list[str]) -> Path:
    # -march=native means another thing on another machine, and homes are shared between machines.
    identity = "\0".join((_SOURCE.read_text(), *_FLAGS, *defines, found, platform.machine(), _cpu_flags()))
    return cache_root() / "kernels" / f"decode-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"


@functools.cache
def _load(sizes: Sizes) -> ctypes.CDLL | None:
    if (found := compiler()) is None:
        return None
    defines = _defines(sizes)
    target = _target(found, defines)
    try:
        if not target.exists():
            # Seconds in which nothing else is seen to happen, and a budget runs.
            Progress("thinkfast").line("compiling the decode step for this machine, once")
            _compile(found, defines, target)
        library = ctypes.CDLL(str(target))
        library.columns.restype = ctypes.c_int64
        return library
    except (OSError, subprocess.SubprocessError):
        return None


def compiler() -> str | None:
    """The C compiler of this machine: $CC, or one of the usual names; None where there is none."""
    named = os.environ.get("CC")
    return next((path for name in (named, "cc", "gcc", "clang") if name and (path := shutil.which(name))), None)


def _cpu_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(command_name: str, defines: list[str], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may compile at once: each into a file of its own, and the rename decides.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [command_name, *_FLAGS, *defines, str(_SOURCE), "-o", str(made), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
        made.replace(target)
