"""A model by name: spec, weights, tokenizer. Strict: every weight is used exactly once, or an error names it.

A name is an embedded model (``tiny``, ``tiny-hybrid``, ``tiny-pure``), one of the catalogue (``smollm2``), a folder
with a stock checkpoint, a GGUF file, a hub id, or a pinned package reference: see sources/resolve.py. A name that
begins with ``random:`` is a published shape with random weights, for measurements: see shapes.py.

Usage: ``loaded = load_model("tiny"); loaded.model, loaded.tokenizer``.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from thinkfast.errors import InputError, ModelError
from thinkfast.models.checkpoint import HEAD, UnfoldableError, check_stock, convert_stock
from thinkfast.models.decoder import Decoder
from thinkfast.models.fp8 import in_fp8
from thinkfast.models.room import refusing, require_room
from thinkfast.models.shapes import random_decoder, random_spec
from thinkfast.models.skeleton import skeleton
from thinkfast.models.sources.catalogue import ASSETS, EMBEDDED, RANDOM
from thinkfast.models.sources.resolve import find_model
from thinkfast.models.spec import ModelSpec
from thinkfast.models.stock_config import from_config
from thinkfast.models.tensorfiles import StockFiles
from thinkfast.models.tokenizer import Tokenizer

__all__ = ["ASSETS", "EMBEDDED", "Loaded", "find_model", "load_as", "load_model", "read_spec"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.bfloat16}
"""What a precision's activations and caches are in; "fp8" has the blocks' projections in eight bits (fp8.py)."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run: weights in eval mode without gradients, and where they came from."""

    name: str
    path: Path
    spec: ModelSpec
    model: Decoder
    tokenizer: Tokenizer
    sha: str


def read_spec(path: Path) -> ModelSpec:
    """The spec in a checkpoint folder's config.json. Errors: ModelError naming the file, or the field."""
    try:
        return from_config(json.loads((path / "config.json").read_text()))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path / 'config.json'}: {error}", remedy="copy the file again") from error


def load_model(name: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Loaded:
    """Load a model by name; see the module docstring for what a name may be.

    Memory: the weights in ``dtype`` and one tensor more. Errors: InputError where ``name`` is no name, or ``dtype`` not
    a floating one of two bytes or more; ModelError where the model is unknown, its files are damaged, or weights and
    config disagree; CapacityError, before anything is read, where its weights do not fit.
    """
    device = require_device(device)
    if not isinstance(cast(object, dtype), torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
        raise InputError(f"dtype is {dtype!r}", remedy="pass torch.float32 or torch.bfloat16, or use load_as for names")
    if not isinstance(cast(object, name), str | Path):
        raise InputError(f"the model is {name!r}", remedy="pass its name or folder; `thinkfast models` lists names")
    with refusing(f"memory ran out while {name} was read", f"see what else takes memory of {device}"):
        return _found(name, dtype, device)


def _found(name: str | Path, dtype: torch.dtype, device: torch.device) -> Loaded:
    if str(name).startswith(RANDOM):
        return _random(str(name), dtype, device)
    path = find_model(name)
    try:
        return _load(name, path, dtype, device)
    except ModelError as error:
        if str(path) in error.message:
            raise
        raise ModelError(f"{path}: {error.message}", remedy=error.remedy) from error


def load_as(name: str | Path, precision: str, device: str | torch.device = "cpu") -> Loaded:
    """``load_model`` in one of PRECISIONS. Errors: InputError for another; as load_model."""
    if precision not in PRECISIONS:
        raise InputError(f"dtype is {precision!r}", remedy=f"use {', '.join(PRECISIONS)}")
    loaded = load_model(name, PRECISIONS[precision], device)
    return replace(loaded, model=in_fp8(loaded.model)) if precision == "fp8" else loaded


def _load(name: str | Path, path: Path, dtype: torch.dtype, device: torch.device) -> Loaded:
    spec = read_spec(path)
    require_room(spec, dtype, device)
    files = StockFiles.open(path)
    check_stock(files.shapes, spec)
    files.require_floating()
    tokenizer = Tokenizer.from_dir(path)
    tokenizer.require_fit(spec.vocab_size)
    with ThreadPoolExecutor(1) as pool:  # hashing releases the GIL: it costs no time beside the reading
        digest = pool.submit(files.digest)
        try:
            tensors = _read(files, spec, dtype, device)
        except UnfoldableError:
            spec = replace(spec, ssm_kv_heads=spec.n_heads)
            tensors = _read(files, spec, dtype, device)
        sha = digest.result()
    model = skeleton(spec)
    model.load_state_dict(tensors, strict=True, assign=True)
    model.reset_frequencies(device)
    model.requires_grad_(False).eval()
    return Loaded(str(name), path, spec, model, tokenizer, sha)


def require_device(name: str | torch.device) -> torch.device:
    """The device of that name. Errors: InputError where there is none here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"{name!r} is no device", remedy="use cpu, or cuda where there is a GPU") from error
    if device.type not in ("cpu", "cuda", "meta") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"there is no {device.type} device here that torch can use", remedy="use cpu")
    return device


def _random(name: str, dtype: torch.dtype, device: torch.device) -> Loaded:
    # Its tokenizer is the smallest there is: chains of random tokens have no text.
    spec, path = random_spec(name), ASSETS / "tiny"
    require_room(spec, dtype, device)
    return Loaded(name, path, spec, random_decoder(spec, dtype, device), Tokenizer.from_dir(path), "")


def _read(files: StockFiles, spec: ModelSpec, dtype: torch.dtype, device: str | torch.device) -> dict[str, Tensor]:
    converted = convert_stock(files.read, spec, HEAD in files.shapes)
    return {name: _joined(pieces, dtype, device) for name, pieces in converted}


def _joined(pieces: tuple[Tensor, ...], dtype: torch.dtype, device: str | torch.device) -> Tensor:
    """The pieces' rows, always in memory of its own: one that stayed backed by the file would keep all its pages."""
    rows = [len(piece) for piece in pieces]
    out = torch.empty((sum(rows), *pieces[0].shape[1:]), dtype=dtype, device=device)
    for place, piece in zip(out.split_with_sizes(rows), pieces, strict=True):
        place.copy_(piece)
    return out
