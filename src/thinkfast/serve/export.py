"""A model to a stock checkpoint folder that transformers, vLLM and llama.cpp's converter read, card included.

The folder appears whole or not at all: weights, tokenizer, generation config, parity report and README.md are made
beside it and moved into place at the end. Loading it again folds it back to our compact form, bit for bit where the
dtype holds the weights.

Usage: ``export_hf(load_model("runs/hybrid/model"), Path("out"), dtype="bf16", parity=run, evaluation=None)``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from thinkfast.errors import InputError, OutputError
from thinkfast.files import atomic_dir, atomic_write
from thinkfast.models.checkpoint import save_checkpoint
from thinkfast.models.loading import Loaded, load_model
from thinkfast.serve.card import CardFacts, Evaluation, write_card
from thinkfast.serve.gguf_model import chat_template
from thinkfast.serve.parity.report import ParityReport

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PARITY = "parity.json"
EXPORTED = re.compile(r"README\.md|chat_template\.jinja|.*\.safetensors|[a-z_.]+\.json")
Parity = Callable[[Loaded], ParityReport] | ParityReport | None


def export_hf(
    loaded: Loaded,
    out: Path,
    dtype: str | None = None,
    parity: Parity = None,
    evaluation: Evaluation | None = None,
    overwrite: bool = False,
) -> Path:
    """Write ``loaded`` to the folder ``out`` and return it.

    dtype: "fp32" or "bf16"; None for that of the source. parity: a report on these weights, or what makes one of the
    exported model; it goes into the card and beside it. evaluation: of these weights, for the card.

    Errors: OutputError where ``out`` is taken or unwritable; InputError where parity or evaluation is of other
    weights; ModelError where no stock config expresses the model.
    """
    kind = dtype or source_dtype(loaded.path)
    if kind not in DTYPES:
        raise InputError(f"dtype {kind!r} is unknown", remedy="use fp32 or bf16")
    claim_folder(out, overwrite)
    with atomic_dir(out) as folder:
        save_checkpoint(loaded.model, loaded.tokenizer.path, folder, DTYPES[kind])
        _finish_config(loaded, folder)
        exported = replace(load_model(folder), name=out.name)
        shas = (loaded.sha, exported.sha)
        report = parity(exported) if callable(parity) else parity
        if report is not None:
            _same_weights(f"the parity report of {report.model}", report.sha, shas)
            atomic_write(folder / PARITY, json.dumps(report.as_json(), indent=1) + "\n")
        if evaluation is not None and not set(evaluation.shas) & set(shas):
            _same_weights(f"the evaluation in {evaluation.folder}", evaluation.shas[0] if evaluation.shas else "", shas)
        write_card(folder, CardFacts(out.name, loaded.name, kind, exported, report, evaluation))
    return out


def source_dtype(folder: Path) -> str:
    """The dtype that a checkpoint's config.json names, as we call it; "fp32" where it names none of ours."""
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    name = str(config.get("dtype") or config.get("torch_dtype") or "")
    return "bf16" if name.removeprefix("torch.") == "bfloat16" else "fp32"


def claim_folder(out: Path, overwrite: bool) -> None:
    """Refuse a place that holds something. Errors: OutputError."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise OutputError(f"{out} already exists", remedy="choose another place, or pass --overwrite")
    if not (out / "config.json").is_file():
        raise OutputError(f"{out} is no checkpoint, and is not overwritten", remedy="choose another place")
    if strange := [path.name for path in sorted(out.iterdir()) if not EXPORTED.fullmatch(path.name)]:
        raise OutputError(
            f"{out} also holds {strange[0]}, which no export wrote, and is not overwritten",
            remedy="choose another place, or take that file out first",
        )


def claim_file(out: Path, overwrite: bool) -> None:
    """Refuse a file that exists. Errors: OutputError."""
    if out.is_dir():
        raise OutputError(f"{out} is a folder", remedy=f"name a file, as {out / 'model.gguf'}")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} already exists", remedy="choose another place, or pass --overwrite")


def _same_weights(what: str, sha: str, shas: tuple[str, str]) -> None:
    if sha not in shas:
        raise InputError(
            f"{what} is of other weights ({sha[:12]}, these are {shas[0][:12]})",
            remedy="make it for this model, or leave it out",
        )


def _finish_config(loaded: Loaded, folder: Path) -> None:
    """What a stock folder has beside our own save: chat template and generation config as files of their own."""
    spec, config_path = loaded.spec, folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    # transformers' cache needs an attention layer; without one it raises at the first token.
    cached = spec.n_attention > 0
    config["use_cache"] = cached
    atomic_write(config_path, json.dumps(config, indent=2) + "\n")
    path = folder / "generation_config.json"
    generation: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    ids = {key: config[key] for key in ("bos_token_id", "pad_token_id") if config.get(key) is not None}
    eos = sorted(loaded.tokenizer.eos_ids)
    generation = ids | ({"eos_token_id": eos[0] if len(eos) == 1 else eos} if eos else {}) | generation
    atomic_write(path, json.dumps(generation | {"use_cache": cached}, indent=2) + "\n")
    template = chat_template(folder)
    if template is not None and not (folder / "chat_template.jinja").is_file():
        atomic_write(folder / "chat_template.jinja", template)
