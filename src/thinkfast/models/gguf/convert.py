"""A GGUF file to a stock checkpoint folder in bf16: done once, because dequantising takes longer than loading.

Everything that can be refused is refused from the header, before a weight is touched.

Usage: ``convert_gguf(Path("m.gguf"), out=Path("m"), show=print)``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from thinkfast.errors import ModelError
from thinkfast.files import output_errors
from thinkfast.models.checkpoint import check_stock
from thinkfast.models.gguf.config import to_stock_config
from thinkfast.models.gguf.header import read_gguf
from thinkfast.models.gguf.vocabulary import special_ids, write_tokenizer
from thinkfast.models.gguf.weights import GGUFWeights, is_tied, rope_factors
from thinkfast.models.stock_config import from_config
from thinkfast.models.tokenizer import Tokenizer


def convert_gguf(path: Path, out: Path, show: Callable[[str], None]) -> None:
    """Write the model in ``path`` into the empty folder ``out``; ``show`` is told how far it is.

    Memory: the weights in bf16 and a few blocks of them in fp32.

    Errors: ModelError where the file is damaged or holds a model that this decoder cannot express; OutputError.
    """
    from safetensors.torch import save_file

    file = read_gguf(path)
    tied = is_tied(file)
    config = to_stock_config(file, tied, rope_factors(file)) | special_ids(file)
    spec = from_config(config)
    weights = GGUFWeights.open(file, tied)
    try:
        check_stock(weights.shapes, spec)
    except ModelError as error:
        raise ModelError(
            error.message.replace("config.json", "the metadata"), remedy="convert the model to GGUF again"
        ) from error
    with output_errors(out):
        write_tokenizer(file, out)
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    Tokenizer.from_dir(out).require_fit(spec.vocab_size)
    tensors: dict[str, torch.Tensor] = {}
    # numpy lets go of the GIL for most of the work; two at a time bound the memory of their intermediates.
    with ThreadPoolExecutor(2) as pool:
        try:
            for done, (name, tensor) in enumerate(
                zip(weights.sources, pool.map(weights.read, weights.sources), strict=True)
            ):
                tensors[name] = tensor
                show(f"dequantising {100 * (done + 1) // len(weights.sources)} %")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    show("writing bf16")
    with output_errors(out):
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        # safetensors makes the file for its owner alone; a cache may be shared as its folder's umask says.
        (out / "model.safetensors").chmod((out / "config.json").stat().st_mode)
