"""The tensors of a checkpoint folder, read a few at a time.

Why: a checkpoint read whole needs its own size in memory beside the model's. Here names and shapes come from the
files' headers, so everything is checked before a weight is read, and a layer's file pages are let go before the next.

Usage: ``files = StockFiles.open(folder); files.shapes; files.read(["model.norm.weight"]); files.digest()``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from thinkfast.errors import ModelError

# safetensors' names; anything else (I8, U8, F8_E4M3 with scales beside it) is a quantised weight.
FLOATING = frozenset({"F16", "BF16", "F32", "F64"})
Shapes = Mapping[str, tuple[int, ...]]
Read = Callable[[Collection[str]], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class StockFiles:
    """Safetensors files of one folder: where each tensor is, its shape and its dtype."""

    files: tuple[Path, ...]
    where: Mapping[str, Path]
    shapes: Shapes
    dtypes: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path) -> StockFiles:
        """Read the headers. Errors: ModelError naming a file that is missing, truncated or damaged."""
        files = tuple(folder / name for name in _file_names(folder))
        where: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, str] = {}
        for path in files:
            with _opened(path) as handle:
                for name in handle.keys():  # noqa: SIM118  (not a mapping)
                    entry = handle.get_slice(name)
                    if name in where:
                        raise ModelError(
                            f"{name} is in both {where[name].name} and {path.name}",
                            remedy="remove the files that do not belong to this checkpoint",
                        )
                    where[name], shapes[name] = path, tuple(entry.get_shape())
                    dtypes[name] = str(entry.get_dtype())
        return cls(files, where, shapes, dtypes)

    def require_floating(self) -> None:
        """Raise ModelError naming a tensor that is not of a floating type."""
        for name, dtype in self.dtypes.items():
            if dtype not in FLOATING:
                raise ModelError(f"{name} holds {dtype}", remedy="use weights that are not quantised")

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        """The named tensors, backed by the files' pages: copy what is to outlive the next call."""
        tensors: dict[str, Tensor] = {}
        for path in {self.where[name] for name in names}:
            # Opened anew each time: pages stay in our memory for as long as one handle or tensor of it lives.
            with _opened(path) as handle:
                tensors |= {name: handle.get_tensor(name) for name in names if self.where[name] == path}
        return tensors

    def digest(self) -> str:
        """SHA-256 of the files' bytes, one after the other."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()


def _file_names(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"cannot read {index}: {error!r}", remedy="copy the file again") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        remedy = "copy the whole checkpoint, weights included"
        if any(path.parent.glob("*.bin")):
            remedy = "convert the .bin weights: transformers' save_pretrained writes safetensors"
        raise ModelError(f"{path} is missing", remedy=remedy)
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except OSError as error:
        raise ModelError(
            f"cannot read {path}: {error.strerror or error}", remedy="check its permissions, or copy it again"
        ) from error
    except SafetensorError as error:
        raise ModelError(
            f"{path} is truncated or damaged: {error}", remedy="copy or download the file again"
        ) from error
