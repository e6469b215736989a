"""A GGUF file's header: metadata and where each tensor lies, with every length checked before it is believed.

Why not the gguf package's reader: on a damaged or truncated file it loops over lengths read from noise, or fails with
an index error. Ours names what is wrong; the package still supplies the block sizes and the dequantisation.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.

Usage: ``file = read_gguf(Path("model.gguf")); file.metadata["general.architecture"], file.tensors["output.weight"]``.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinkfast.errors import ModelError

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies: shape in torch's order (rows first), ggml type, and its bytes [start, end) in the file."""

    shape: tuple[int, ...]
    kind: int
    kind_name: str
    start: int
    end: int

    @property
    def bits(self) -> float:
        """Bits a weight, the block's scales included."""
        return 8 * (self.end - self.start) / math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A file whose header is read and whose tensors all lie inside it."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]


def require_gguf() -> Any:
    """The gguf package. Errors: ModelError where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise ModelError(
            "reading GGUF files needs the gguf package, which is not installed",
            remedy="pip install 'thinkfast[gguf]'",
        ) from error
    return gguf


def read_gguf(path: Path) -> GGUFFile:
    """Read the header of ``path``. Errors: ModelError saying where the file is damaged or what it is instead."""
    gguf = require_gguf()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(path, data).read(gguf)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}", remedy="check its permissions") from error
    except ValueError as error:  # an empty file cannot be mapped
        raise ModelError(f"{path} is empty", remedy="copy or download the file again") from error


class _Cursor:
    """Walks the header from its first byte to its last."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at, self.doing = path, data, 0, "the header"

    def damaged(self, what: str) -> ModelError:
        return ModelError(
            f"{self.path} is truncated or damaged: {what}, reading {self.doing} at byte {self.at:,} of "
            f"{len(self.data):,}",
            remedy="copy or download the file again",
        )

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise self.damaged(f"{size:,} bytes are wanted")
        self.at += size
        return self.data[self.at - size : self.at]

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        return struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}")))

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def string(self) -> str:
        raw = self.take(self.number("Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.damaged("a text is not UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            item, count = self.number("I"), self.number("Q")
            if item in _SCALARS:
                return list(self.numbers(_SCALARS[item], count))
            # Every string, and every inner array, takes 8 bytes at least.
            if item not in (STRING, ARRAY) or count * 8 > len(self.data) - self.at:
                raise self.damaged(f"an array of {count:,} values of type {item}")
            return [self.value(item) for _ in range(count)]
        if kind not in _SCALARS:
            raise self.damaged(f"a value of type {kind}")
        return self.number(_SCALARS[kind])

    def read(self, gguf: Any) -> GGUFFile:
        if self.data[: len(MAGIC)] != MAGIC:
            raise ModelError(f"{self.path} is not a GGUF file", remedy="pass a .gguf file, or a checkpoint folder")
        self.take(len(MAGIC))
        version = self.number("I")
        if version not in (2, 3):
            raise ModelError(
                f"{self.path} is GGUF version {version}" if version < 100 else f"{self.path} is big-endian or damaged",
                remedy="convert it again with a current llama.cpp, little-endian",
            )
        n_tensors, n_values = self.numbers("Q", 2)
        metadata: dict[str, Any] = {}
        for i in range(n_values):
            self.doing = f"metadata {i + 1} of {n_values:,}"
            key = self.string()
            self.doing = f"metadata {key!r}"
            metadata[key] = self.value(self.number("I"))
        if int(metadata.get("split.count", 1)) > 1:
            raise ModelError(
                f"{self.path} is one of {metadata['split.count']} parts of a model",
                remedy="join them with llama.cpp: llama-gguf-split --merge FIRST-PART.gguf whole.gguf",
            )
        found = [self.tensor(i, n_tensors) for i in range(n_tensors)]
        align = int(metadata.get("general.alignment", _ALIGNMENT)) or _ALIGNMENT
        base = -(-self.at // align) * align
        tensors = {name: self.place(gguf, name, shape, kind, base + offset) for name, shape, kind, offset in found}
        if len(tensors) < len(found):
            raise self.damaged("a tensor is named twice")
        return GGUFFile(self.path, metadata, tensors)

    def tensor(self, index: int, count: int) -> tuple[str, tuple[int, ...], int, int]:
        self.doing = f"tensor {index + 1} of {count:,}"
        name, n_dims = self.string(), self.number("I")
        if not 1 <= n_dims <= 4:
            raise self.damaged(f"{name!r} with {n_dims} dimensions")
        shape = tuple(int(n) for n in reversed(self.numbers("Q", n_dims)))  # ggml counts from the innermost
        return name, shape, self.number("I"), self.number("Q")

    def place(self, gguf: Any, name: str, shape: tuple[int, ...], kind: int, start: int) -> TensorEntry:
        self.doing = f"tensor {name!r}"
        try:
            ggml = gguf.GGMLQuantizationType(kind)
            block, size = gguf.GGML_QUANT_SIZES[ggml]
        except (ValueError, KeyError) as error:
            raise self.damaged(f"a tensor of unknown type {kind}") from error
        if not all(shape) or shape[-1] % block:
            raise self.damaged(f"a tensor of shape {shape}")
        end = start + math.prod(shape) // block * size
        if end > len(self.data):
            raise self.damaged(f"it ends at byte {end:,}")
        return TensorEntry(shape, kind, str(ggml.name), start, end)
