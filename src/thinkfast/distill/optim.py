"""The optimiser of a stage: AdamW for everything, or Muon for the weight matrices and AdamW for the rest.

Muon (Jordan et al. 2024; torch.optim.Muon) orthogonalises a matrix's momentum. It takes far fewer steps where a run
is short and its batches are small, which is the case of a distillation that a laptop does while somebody watches.

Usage: ``optimiser = Optimiser(parameters, config, fused=False); optimiser.set_lr(1e-3); optimiser.step()``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from thinkfast.distill.recipe import StageConfig

NARROW = 8  # a "matrix" with fewer columns (the short convolution's taps) is a list of vectors to Muon's algebra


class Optimiser:
    """One or two torch optimisers behind one state dict."""

    def __init__(self, parameters: list[nn.Parameter], config: StageConfig, *, fused: bool) -> None:
        matrices = [p for p in parameters if p.dim() == 2 and p.shape[1] > NARROW and p.shape[0] < 4 * p.shape[1] + 1]
        muon = {id(p) for p in matrices} if config.optimiser == "muon" else set()
        rest = [p for p in parameters if id(p) not in muon]
        groups = [
            {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.vector_lr = config.vector_lr
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), fused=fused)
        ]
        if muon:
            self.parts.append(
                torch.optim.Muon(
                    matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
                )
            )

    def set_lr(self, lr: float) -> None:
        """The learning rate of every group: the matrices' own, the vectors' by their multiple of it."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
        self.parts[0].param_groups[1]["lr"] = lr * self.vector_lr

    def step(self) -> None:
        """Update all parameters."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """State of all parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of ``state_dict``. Errors: ValueError where the parts or their groups differ."""
        if len(state["parts"]) != len(self.parts):
            raise ValueError("saved with another optimiser")
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
