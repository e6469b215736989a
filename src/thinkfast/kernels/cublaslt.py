"""cuBLASLt's products by an algorithm of one's own choice, through ctypes from the library that torch has loaded.

torch.mm takes the first algorithm that the library's rules name. They name up to seven more for the same sizes, and
others differ from these in how many blocks share what they load. Some are faster: by 11 to 15 % for a Llama-3.2-1B's
down projection at 256 and 512 rows (H100, docs/lab.md). torch's own way to choose, torch.cuda.tunable, serves AMD's
libraries only as of torch 2.11.

Only sums kept in fp32 until the end, and added up in the same order each time.

Legend: B rows, N outputs, K inputs.

Usage: ``problem = load().problem(Shape.of(x, weight, out, add=False)); problem.run(problem.algorithms()[0], x, weight,
out, workspace)``. Plain torch beside it: ``reference``.
Source: NVIDIA's cuBLAS documentation, "Using the cuBLASLt API"; numbers are those of its header, cublasLt.h.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

# Bytes that a product may use beside its operands, for shares of its sums: cuBLAS's own on a Hopper.
WORKSPACE = 32 << 20
# Bytes that operands begin at a multiple of, as algorithms are named for.
ALIGNED = 256
_DTYPES = {torch.float16: 2, torch.bfloat16: 14}
_FP32, _IN_FP32, _TRANSPOSED = 0, 68, 1
_DESC_TRANS_A, _PREF_REDUCTION, _PREF_WORKSPACE = 3, 3, 1
_ALGORITHM_REDUCTION, _ALGORITHM_CLUSTER = 3, 8
# Clusters of one block to sixteen; 0 would be the library's choice, 1 is kept.
_CLUSTERS = range(2, 17)
# How shares of K are added up: there are none, or in fp32 in the workspace.
_REDUCTIONS = (0, 2)
_MOST_ALGORITHMS = 32
# An algorithm is 64 bytes that mean something to the same version of the library.
_Words = c_uint64 * 8


class _Result(ctypes.Structure):
    _fields_ = (
        ("algorithm", _Words), ("workspace", c_size_t), ("state", c_int), ("waves", c_float), ("reserved", c_int * 4),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """out [B, N], ``line`` elements from row to row, = x [B, K] weight^T [K, N]; add: added to what is there."""

    rows: int
    outputs: int
    inputs: int
    line: int
    add: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, out: Tensor, add: bool) -> Shape:
        """That of a product."""
        return cls(x.shape[0], weight.shape[0], weight.shape[1], out.stride(0), add, out.dtype)


def serves(x: Tensor, weight: Tensor, out: Tensor) -> bool:
    """Whether this module does the product: 16 bits, lines without gaps in what is read, places that are aligned."""
    all_of = (x, weight, out)
    return (
        out.is_cuda
        and out.dtype in _DTYPES
        and all(t.dtype == out.dtype and t.stride(1) == 1 and t.data_ptr() % ALIGNED == 0 for t in all_of)
        and x.stride(0) == weight.stride(0) == x.shape[1]
    )


def reference(x: Tensor, weight: Tensor, out: Tensor, add: bool) -> None:
    """The product by torch."""
    if add:
        torch.addmm(out, x, weight.t(), out=out)
    else:
        torch.mm(x, weight.t(), out=out)


class CublasLt:
    """The library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library, self.handle = library, c_void_p()
        for name, kinds in _ARGUMENTS.items():
            getattr(library, name).argtypes = kinds
        library.cublasLtGetVersion.restype = c_size_t
        self.version = int(library.cublasLtGetVersion())
        self.check(library.cublasLtCreate(byref(self.handle)))

    @staticmethod
    def check(status: int) -> None:
        """Raise what the library complains of."""
        if status:
            raise RuntimeError(f"cuBLASLt says {status}")

    def problem(self, shape: Shape) -> Problem:
        """Products of one shape."""
        return Problem(self, shape)

    def __del__(self) -> None:
        if self.handle.value:
            self.library.cublasLtDestroy(self.handle)


def load() -> CublasLt | None:
    """The library that torch has loaded; None where there is no GPU of NVIDIA's, or it is not to be found."""
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return None
    try:
        return CublasLt(ctypes.CDLL(f"libcublasLt.so.{torch.version.cuda.partition('.')[0]}"))
    except (OSError, AttributeError, RuntimeError):
        return None


class Problem:
    """Products of one shape, as the library sees them: columns first, so out^T [N, B] = weight^T^T x^T."""

    def __init__(self, lt: CublasLt, shape: Shape) -> None:
        self._lt, self._library = lt, lt.library
        kind = _DTYPES[shape.dtype]
        self._operation = c_void_p()
        lt.check(self._library.cublasLtMatmulDescCreate(byref(self._operation), _IN_FP32, _FP32))
        transposed = c_int32(_TRANSPOSED)
        lt.check(self._library.cublasLtMatmulDescSetAttribute(
            self._operation, _DESC_TRANS_A, byref(transposed), ctypes.sizeof(transposed)
        ))  # fmt: skip
        self._weight = self._layout(kind, shape.inputs, shape.outputs, shape.inputs)
        self._x = self._layout(kind, shape.inputs, shape.rows, shape.inputs)
        self._out = self._layout(kind, shape.outputs, shape.rows, shape.line)
        self._one, self._kept = c_float(1.0), c_float(1.0 if shape.add else 0.0)

    def _layout(self, kind: int, rows: int, columns: int, line: int) -> c_void_p:
        made = c_void_p()
        self._lt.check(self._library.cublasLtMatrixLayoutCreate(byref(made), kind, rows, columns, line))
        return made

    def algorithms(self) -> list[bytes]:
        """What the library's rules name for the shape, its first choice first."""
        preference, count = c_void_p(), c_int()
        self._lt.check(self._library.cublasLtMatmulPreferenceCreate(byref(preference)))
        room, sums = c_uint64(WORKSPACE), c_uint32(sum(_REDUCTIONS))
        found = (_Result * _MOST_ALGORITHMS)()
        try:
            for name, value in ((_PREF_WORKSPACE, room), (_PREF_REDUCTION, sums)):
                self._lt.check(self._library.cublasLtMatmulPreferenceSetAttribute(
                    preference, name, byref(value), ctypes.sizeof(value)
                ))  # fmt: skip
            if self._library.cublasLtMatmulAlgoGetHeuristic(
                self._lt.handle, self._operation, self._weight, self._x, self._out, self._out, preference,
                _MOST_ALGORITHMS, found, byref(count),
            ):  # fmt: skip
                return []
        finally:
            self._library.cublasLtMatmulPreferenceDestroy(preference)
        named = [bytes(found[i].algorithm) for i in range(count.value)]
        return [algorithm for algorithm in named if self.takes(algorithm)]

    def variants(self, algorithm: bytes) -> list[bytes]:
        """The same with clusters of other forms, as far as they are taken."""
        found = []
        for cluster in map(c_uint16, _CLUSTERS):
            words = _Words.from_buffer_copy(algorithm)
            if not self._library.cublasLtMatmulAlgoConfigSetAttribute(
                byref(words), _ALGORITHM_CLUSTER, byref(cluster), ctypes.sizeof(cluster)
            ):  # fmt: skip
                found.append(bytes(words))
        return [one for one in found if one != algorithm and self.takes(one)]

    def takes(self, algorithm: bytes) -> bool:
        """Whether it does this shape, on this device, in this version, with the workspace and sums asked for."""
        words, result = _Words.from_buffer_copy(algorithm), _Result()
        if self._library.cublasLtMatmulAlgoCheck(
            self._lt.handle, self._operation, self._weight, self._x, self._out, self._out, byref(words), byref(result)
        ):  # fmt: skip
            return False
        sums, written = c_uint32(), c_size_t()
        if self._library.cublasLtMatmulAlgoConfigGetAttribute(
            byref(words), _ALGORITHM_REDUCTION, byref(sums), ctypes.sizeof(sums), byref(written)
        ):  # fmt: skip
            return False
        return result.workspace <= WORKSPACE and sums.value in _REDUCTIONS

    def run(self, algorithm: bytes, x: Tensor, weight: Tensor, out: Tensor, workspace: Tensor) -> None:
        """Launch it in torch's stream. ``workspace`` [WORKSPACE] uint8 is its own until it has ended."""
        words = _Words.from_buffer_copy(algorithm)
        self._lt.check(self._library.cublasLtMatmul(
            self._lt.handle, self._operation, byref(self._one), weight.data_ptr(), self._weight, x.data_ptr(), self._x,
            byref(self._kept), out.data_ptr(), self._out, out.data_ptr(), self._out, byref(words),
            workspace.data_ptr(), workspace.numel(), torch.cuda.current_stream(out.device).cuda_stream,
        ))  # fmt: skip

    def __del__(self) -> None:
        for made, undo in (
            ("_operation", "cublasLtMatmulDescDestroy"), ("_weight", "cublasLtMatrixLayoutDestroy"),
            ("_x", "cublasLtMatrixLayoutDestroy"), ("_out", "cublasLtMatrixLayoutDestroy"),
        ):  # fmt: skip
            if (one := getattr(self, made, None)) is not None:
                getattr(self._library, undo)(one)


_ANY = c_void_p
_ARGUMENTS = {
    "cublasLtCreate": (POINTER(_ANY),),
    "cublasLtDestroy": (_ANY,),
    "cublasLtGetVersion": (),
    "cublasLtMatmulDescCreate": (POINTER(_ANY), c_int, c_int),
    "cublasLtMatmulDescSetAttribute": (_ANY, c_int, _ANY, c_size_t),
    "cublasLtMatmulDescDestroy": (_ANY,),
    "cublasLtMatrixLayoutCreate": (POINTER(_ANY), c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatrixLayoutDestroy": (_ANY,),
    "cublasLtMatmulPreferenceCreate": (POINTER(_ANY),),
    "cublasLtMatmulPreferenceSetAttribute": (_ANY, c_int, _ANY, c_size_t),
    "cublasLtMatmulPreferenceDestroy": (_ANY,),
    "cublasLtMatmulAlgoGetHeuristic": (*[_ANY] * 7, c_int, POINTER(_Result), POINTER(c_int)),
    "cublasLtMatmulAlgoCheck": (*[_ANY] * 7, POINTER(_Result)),
    "cublasLtMatmulAlgoConfigSetAttribute": (_ANY, c_int, _ANY, c_size_t),
    "cublasLtMatmulAlgoConfigGetAttribute": (_ANY, c_int, _ANY, c_size_t, POINTER(c_size_t)),
    "cublasLtMatmul": (*[_ANY] * 14, c_size_t, _ANY),
}
