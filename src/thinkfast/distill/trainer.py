"""Train one stage, with progress, a loss log and exact resume.

A checkpoint holds weights, optimiser and step; batches are a pure function of (seed, step), so a run that is killed
and started again walks through the same losses as one that was not. The log never runs ahead of what a resumed run
will write again: rows at or past the checkpoint's step are cut when it is loaded.

Usage: ``train_stage(stage, corpus, folder, log, on_step=print)``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from thinkfast.data.corpus import Batch, Corpus
from thinkfast.distill.stages import Stage
from thinkfast.errors import GateError, OutputError
from thinkfast.files import atomic_path, atomic_write
from thinkfast.jsonl import JsonlLog, read_jsonl

OnStep = Callable[["StepEvent"], None]


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
    on_step: OnStep | None = None,
) -> None:
    """Run ``stage`` on ``module`` to its last step, going on from ``folder`` where an earlier run stopped.

    Writes ``<stage>.pt`` (removed by the caller once the run is over) and ``<stage>.losses.jsonl``.
    Errors: GateError with the step where the loss is not finite; OutputError where the folder cannot be written.
    """
    config = stage.config
    parameters = stage.parameters()
    device = parameters[0].device
    module.requires_grad_(False)
    for p in parameters:
        p.requires_grad_(True)
    decayed = [p for p in parameters if p.dim() >= 2]
    plain = [p for p in parameters if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), fused=device.type == "cuda")
    checkpoint, log_path = folder / f"{config.name}.pt", folder / f"{config.name}.losses.jsonl"
    first = _resume(checkpoint, module, optimiser)
    log = _LossLog(log_path, first)
    module.train()
    started = last_saved = time.monotonic()
    try:
        for step in range(first, config.steps):
            lr = config.lr_at(step)
            for group in optimiser.param_groups:
                group["lr"] = lr
            batch = to_device(corpus.batch(step), device)
            loss = stage.loss(batch)
            value = loss.item()
            if not math.isfinite(value):
                raise GateError(
                    f"stage {config.name}: the loss is {value} at step {step}",
                    remedy=f"lower stages.{config.name}.lr (now {config.lr}) and start again in a new folder",
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, config.clip)
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


def _save(path: Path, module: torch.nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    with atomic_path(path) as temp:
        torch.save({"step": step, "model": module.state_dict(), "optimiser": optimiser.state_dict()}, temp)


def _resume(path: Path, module: torch.nn.Module, optimiser: torch.optim.Optimizer) -> int:
    if not path.is_file():
        return 0
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
    except (RuntimeError, KeyError, ValueError) as error:
        raise OutputError(
            f"{path} does not fit this recipe: {error}", remedy="start again in a new folder, or with the old recipe"
        ) from error
    return int(saved["step"])


class _LossLog:
    """Loss rows of one stage, cut back to the step that training goes on from."""

    def __init__(self, path: Path, first: int) -> None:
        kept = [row for row in read_jsonl(path, allow_torn_end=True) if row["step"] < first] if path.is_file() else []
        atomic_write(path, "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in kept))
        self.tokens = int(kept[-1]["tokens"]) if kept else 0
        self._log = JsonlLog(path)

    def append(self, step: int, loss: float, lr: float, tokens: int) -> None:
        self.tokens += tokens
        self._log.append({"step": step, "tokens": self.tokens, "loss": loss, "lr": lr})

    def close(self) -> None:
        self._log.close()
