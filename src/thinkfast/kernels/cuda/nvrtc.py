"""CUDA C++ for this machine's GPU, compiled when it is first wanted and launched through the driver, by ctypes.

NVRTC comes with torch's CUDA builds, so nothing has to be installed, and a kernel takes it half a second, once: machine
code is kept in the cache. Sizes are constants of the compiler's, as they are in kernels/cpu/decode.c.

Usage: ``kernel = compiled(source, "mixer", (("N", 16),), shared, device)``, then ``kernel.launch(blocks, threads,
arguments)``.
Source: NVIDIA's documentation of NVRTC and of the CUDA driver API; numbers are those of its header, cuda.h.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import torch

from thinkfast.errors import OutputError
from thinkfast.files import atomic_write
from thinkfast.models.sources.cache import cache_place

# An attribute of launches: this one may begin before the kernel in front has ended (triton/launch.py). One of kernels:
# bytes of shared memory beside what they declare.
_OVERLAPS, _SHARED_MEMORY = 6, 8


class _Attribute(ctypes.Structure):
    _fields_ = (("id", c_int), ("padding", c_int), ("value", c_int), ("rest", c_int * 15))


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", c_uint * 3), ("block", c_uint * 3), ("shared", c_uint), ("stream", c_void_p),
        ("attributes", POINTER(_Attribute)), ("count", c_uint),
    )  # fmt: skip


class Kernel:
    """A kernel loaded on the device that is current, with ``shared`` bytes of shared memory a block."""

    def __init__(self, code: bytes, name: str, shared: int) -> None:
        self._driver, self._shared = ctypes.CDLL("libcuda.so.1"), shared
        module, self._function = c_void_p(), c_void_p()
        self._check(self._driver.cuModuleLoadData(byref(module), code))
        self._check(self._driver.cuModuleGetFunction(byref(self._function), module, name.encode()))
        self._check(self._driver.cuFuncSetAttribute(self._function, _SHARED_MEMORY, shared))

    @staticmethod
    def _check(status: int) -> None:
        if status:
            raise RuntimeError(f"CUDA's driver says {status}")

    def launch(self, blocks: int, threads: int, arguments: Sequence[torch.Tensor | ctypes._SimpleCData[Any]]) -> None:
        """On torch's current stream: tensors by their address, numbers as ctypes'."""
        values = [c_uint64(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in arguments]
        places = (c_void_p * len(values))(*map(ctypes.addressof, values))
        stream = c_void_p(torch.cuda.current_stream().cuda_stream)
        overlaps = _Attribute(_OVERLAPS, 0, 1)
        how = _Launch((blocks, 1, 1), (threads, 1, 1), self._shared, stream, ctypes.pointer(overlaps), 1)
        self._check(self._driver.cuLaunchKernelEx(byref(how), self._function, places, None))


def _libraries() -> Iterator[Path | str]:
    """Where NVRTC may lie: where the loader looks, or in packages beside torch."""
    if torch.version.cuda is not None:
        yield f"libnvrtc.so.{torch.version.cuda.partition('.')[0]}"
    yield from sorted((Path(torch.__file__).parents[1] / "nvidia").glob("*/lib/libnvrtc.so.*"))


@functools.cache
def load() -> ctypes.CDLL | None:
    """NVRTC; None where it is not to be found."""
    for library in _libraries():
        try:
            if isinstance(library, Path):
                # What it opens itself lies beside it, where the loader does not look.
                for beside in library.parent.glob("libnvrtc-builtins.so.*"):
                    ctypes.CDLL(str(beside), ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(library))
        except OSError:
            continue
    return None


def machine_code(
    nvrtc: ctypes.CDLL,
    source: str,
    capability: tuple[int, int],
    defines: Sequence[tuple[str, int]],
    strict: bool = False,
) -> bytes:
    """``source`` compiled for GPUs of a compute capability, with these constants.

    Errors: RuntimeError with what the compiler says; where ``strict``, of a warning too.
    """
    architecture = "--gpu-architecture=sm_{}{}".format(*capability)
    options = [architecture, "--std=c++17", *(f"-D{name}={value}" for name, value in defines)]
    program, size = c_void_p(), c_size_t()
    if nvrtc.nvrtcCreateProgram(byref(program), source.encode(), b"kernel.cu", 0, None, None):
        raise RuntimeError("NVRTC takes no program")
    try:
        given = (c_char_p * len(options))(*(option.encode() for option in options))
        failed = nvrtc.nvrtcCompileProgram(program, len(options), given)
        nvrtc.nvrtcGetProgramLogSize(program, byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        if failed or (strict and log.value.strip()):
            raise RuntimeError(f"NVRTC says {log.value.decode()}")
        nvrtc.nvrtcGetCUBINSize(program, byref(size))
        code = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, code)
        return code.raw
    finally:
        nvrtc.nvrtcDestroyProgram(byref(program))


def kept_code(
    nvrtc: ctypes.CDLL, source: str, capability: tuple[int, int], defines: Sequence[tuple[str, int]]
) -> bytes:
    """``machine_code``, from the cache where it is there, and there is one."""
    version = (c_int(), c_int())
    nvrtc.nvrtcVersion(*map(byref, version))
    identity = "\0".join((source, repr([part.value for part in version]), repr(capability), repr(tuple(defines))))
    place = cache_place("kernels", f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.cubin")
    if place is None:
        return machine_code(nvrtc, source, capability, defines)
    with suppress(OSError):
        return place.read_bytes()
    code = machine_code(nvrtc, source, capability, defines)
    # A cache that cannot be written costs half a second each time.
    with suppress(OutputError, OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(place, code)
    return code


@functools.cache
def compiled(
    source: Path, name: str, defines: tuple[tuple[str, int], ...], shared: int, device: torch.device
) -> Kernel | None:
    """The kernel ``name`` of ``source`` with these constants and ``shared`` bytes of shared memory a block; None where
    there is no NVRTC.
    """
    if (nvrtc := load()) is None:
        return None
    code = kept_code(nvrtc, source.read_text(), torch.cuda.get_device_capability(device), defines)
    with torch.cuda.device(device):
        return Kernel(code, name, shared)
