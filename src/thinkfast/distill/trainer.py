"""Train one stage, with progress, a loss log and exact resume.

A checkpoint holds weights, optimiser and step; batches are a pure function of (seed, step), so a run that is killed
and started again walks through the same losses as one that was not. The log never runs ahead of what a resumed run
will write again: rows at or past the checkpoint's step are cut when it is loaded.

Usage: ``train_stage(stage, student, corpus, folder, on_step=print)``.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thinkfast.data.corpus import Batch, Corpus
from thinkfast.distill.gradients import Gradients
from thinkfast.distill.optim import Optimiser
from thinkfast.distill.recipe import StageConfig
from thinkfast.distill.stages import Stage
from thinkfast.errors import GateError, OutputError
from thinkfast.files import atomic_path, output_errors
from thinkfast.jsonl import JsonlLog

OnStep = Callable[["StepEvent"], None]
OnBegin = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class StepEvent:
    """One optimiser step: loss in the stage's own unit, seconds spent in the stage by this process."""

    stage: str
    step: int
    steps: int
    tokens: int
    loss: float
    lr: float
    seconds: float


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch's tensors on ``device``."""
    if device.type == "cpu":
        return batch
    return Batch(*(t.to(device, non_blocking=True) for t in (batch.tokens, batch.lens, batch.loss_mask)))


def train_stage(
    stage: Stage,
    module: torch.nn.Module,
    corpus: Corpus,
    folder: Path,
    *,
    save_every: float = 10.0,
    bf16: bool = False,
    parts: int = 1,
    threads: Executor | None = None,
    on_begin: OnBegin | None = None,
    on_step: OnStep | None = None,
) -> None:
    """Run ``stage`` on ``module`` to its last step, going on from ``folder`` where an earlier run stopped.

    ``bf16`` computes in bfloat16 where autocast deems it safe; weights and optimiser stay in fp32. A batch is
    computed in ``parts``, as the recipe says, on ``threads`` or threads of its own. ``on_begin`` gets the number of
    steps that are done already.
    Writes ``<stage>.pt`` (removed by the caller once the run is over) and ``<stage>.losses.jsonl``.
    Errors: GateError with the step where loss or gradient is not finite; OutputError where the folder cannot be
    written, or is being written by another run.
    """
    config = stage.config
    parameters = stage.parameters()
    device = parameters[0].device
    module.requires_grad_(False)
    for p in parameters:
        p.requires_grad_(True)
    optimiser = Optimiser(parameters, config, fused=device.type == "cuda")
    checkpoint, log_path = folder / f"{config.name}.pt", folder / f"{config.name}.losses.jsonl"
    first = _resume(checkpoint, module, optimiser)
    if on_begin is not None:
        on_begin(first)
    log = _LossLog(log_path, first)
    module.train()
    started = last_saved = time.monotonic()
    try:
        with Gradients(stage, parameters, parts=parts, bf16=bf16, threads=threads) as gradients:
            for step in range(first, config.steps):
                lr = config.lr_at(step)
                optimiser.set_lr(lr)
                batch = to_device(corpus.batch(step), device)
                value = _finite(gradients(batch), "loss", config, step)
                norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip)
                _finite(norm, "gradient norm", config, step)  # before it can reach the weights
                optimiser.step()
                log.append(step, value, lr, batch.tokens.numel())
                if on_step is not None:
                    event = StepEvent(
                        config.name, step + 1, config.steps, log.tokens, value, lr, time.monotonic() - started
                    )
                    on_step(event)
                if time.monotonic() - last_saved >= save_every and step + 1 < config.steps:
                    _save(checkpoint, module, optimiser, step + 1)
                    last_saved = time.monotonic()
        _save(checkpoint, module, optimiser, config.steps)
    finally:
        log.close()
        module.requires_grad_(False).eval()


def save_state(path: Path, state: dict[str, Any]) -> None:
    """``torch.save``, whole or not at all. Errors: OutputError, on a full disk too."""
    with atomic_path(path) as temp:
        try:
            torch.save(state, temp)
        except RuntimeError as error:  # torch hides the reason of a failed write
            raise OutputError(
                f"cannot write {path}: {error}", remedy="free some disk space, then run the same command again"
            ) from error


def _finite(value: Tensor, what: str, config: StageConfig, step: int) -> float:
    found = value.item()
    if not math.isfinite(found):
        raise GateError(
            f"stage {config.name}: the {what} is {found} at step {step}",
            remedy=f"lower the lr of stage {config.name} (now {config.lr:g}) and start again in a new folder",
        )
    return found


def _save(path: Path, module: torch.nn.Module, optimiser: Optimiser, step: int) -> None:
    save_state(path, {"step": step, "model": module.state_dict(), "optimiser": optimiser.state_dict()})


def _resume(path: Path, module: torch.nn.Module, optimiser: Optimiser) -> int:
    if not path.is_file():
        return 0
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
    except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise OutputError(
            f"{path} does not fit this recipe: {error}", remedy="start again in a new folder, or with the old recipe"
        ) from error
    return int(saved["step"])


class _LossLog:
    """Loss rows of one stage, cut back to the step that training goes on from."""

    def __init__(self, path: Path, first: int) -> None:
        with JsonlLog(path) as log:  # a second run in this folder ends here, before it cuts what the first one wrote
            rows = sum(row["step"] < first for row in log.rows())
        with output_errors(path), path.open("rb") as file:
            kept = list(itertools.islice(file, rows))
        with output_errors(path):
            os.truncate(path, sum(map(len, kept)))
        self.tokens = int(json.loads(kept[-1])["tokens"]) if kept else 0
        self._log = JsonlLog(path)

    def append(self, step: int, loss: float, lr: float, tokens: int) -> None:
        self.tokens += tokens
        self._log.append({"step": step, "tokens": self.tokens, "loss": loss, "lr": lr})

    def close(self) -> None:
        self._log.close()
