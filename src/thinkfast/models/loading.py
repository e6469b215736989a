"""A model by name: spec, weights, tokenizer. Strict: every weight is used exactly once, or an error names it.

A name is an embedded model (``tiny``, ``tiny-hybrid``, ``tiny-pure``) or a folder with a stock checkpoint.

Usage: ``loaded = load_model("tiny"); loaded.model, loaded.tokenizer``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from thinkfast.errors import ModelError
from thinkfast.models.checkpoint import UnfoldableError, from_stock
from thinkfast.models.decoder import Decoder
from thinkfast.models.spec import ModelSpec
from thinkfast.models.stock_config import from_config
from thinkfast.models.tokenizer import Tokenizer

ASSETS = Path(__file__).resolve().parent.parent / "assets"
EMBEDDED = ("tiny", "tiny-hybrid", "tiny-pure")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run: weights in eval mode without gradients, and where they came from."""

    name: str
    path: Path
    spec: ModelSpec
    model: Decoder
    tokenizer: Tokenizer
    sha: str


def find_model(name: str | Path) -> Path:
    """The checkpoint folder that ``name`` means.

    Errors: ModelError naming what was asked for and what there is.
    """
    folder = ASSETS / name if str(name) in EMBEDDED else Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise ModelError(f"{folder} has no config.json", remedy="pass a checkpoint folder, or one of: " + _known())
    close = difflib.get_close_matches(str(name), EMBEDDED, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ModelError(f"unknown model {str(name)!r}", remedy=f"{hint}pass a checkpoint folder, or one of: {_known()}")


def _known() -> str:
    return ", ".join(EMBEDDED)


def read_spec(path: Path) -> ModelSpec:
    """The spec in a checkpoint folder's config.json. Errors: ModelError naming the file, or the field."""
    try:
        return from_config(json.loads((path / "config.json").read_text()))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path / 'config.json'}: {error}", remedy="copy the file again") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """All tensors of a folder's safetensors files, and a digest of their bytes.

    Errors: ModelError naming a file that is missing or truncated.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    index = path / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"cannot read {index}: {error!r}", remedy="copy the file again") from error
    tensors: dict[str, Tensor] = {}
    digest = hashlib.sha256()
    for name in names:
        if not (path / name).is_file():
            raise ModelError(f"{path / name} is missing", remedy="copy the whole checkpoint, weights included")
        try:
            data = (path / name).read_bytes()
            digest.update(data)
            tensors |= load(data)
        except OSError as error:
            raise ModelError(f"cannot read {path / name}: {error.strerror}", remedy="check its permissions") from error
        except SafetensorError as error:
            raise ModelError(
                f"{path / name} is truncated or damaged: {error}", remedy="copy or download the file again"
            ) from error
    return tensors, digest.hexdigest()


def load_model(name: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Loaded:
    """Load a model by name; see the module docstring for what a name may be.

    Errors: ModelError where the model is unknown, its files are damaged, or weights and config disagree.
    """
    path = find_model(name)
    spec = read_spec(path)
    stock, sha = read_tensors(path)
    tokenizer = Tokenizer.from_dir(path)
    if tokenizer.vocab_size > spec.vocab_size:
        raise ModelError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding {spec.vocab_size} rows",
            remedy="use the tokenizer that came with these weights",
        )
    try:
        ours = from_stock(stock, spec)
    except UnfoldableError:
        spec = replace(spec, ssm_kv_heads=spec.n_heads)
        ours = from_stock(stock, spec)
    with torch.device("meta"):
        model = Decoder(spec)
    tensors = {k: t.to(device=device, dtype=dtype) for k, t in ours.items()}
    model.load_state_dict(tensors, strict=True, assign=True)
    model.reset_frequencies(device)
    model.requires_grad_(False).eval()
    return Loaded(str(name), path, spec, model, tokenizer, sha)
