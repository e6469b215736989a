"""Saved random checkpoints, at the sizes where grouping, state and head widths all differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from thinkfast.models.checkpoint import save_checkpoint
from thinkfast.models.decoder import Decoder
from thinkfast.models.loading import ASSETS
from thinkfast.models.spec import ModelSpec

SaveModel = Callable[..., Path]


@pytest.fixture
def save_model(tmp_path: Path) -> SaveModel:
    """save_model("hybrid", group, d_state, **spec changes): a checkpoint folder with every parameter random."""

    def save(kind: str, group: int = 2, d_state: int = 8, **changes: object) -> Path:
        sizes: dict[str, object] = {"vocab_size": 512, "d_model": 48, "n_heads": 6, "head_dim": 8, "d_ff": 40}
        sizes |= {"n_kv_heads": 6 // group, "layer_types": ("attention",) * 3}
        spec = ModelSpec(**(sizes | changes))  # type: ignore[arg-type]
        if kind != "teacher":
            spec = spec.as_student((1,) if kind == "hybrid" else (), d_state)
        model = Decoder(spec).requires_grad_(False)
        generator = torch.Generator().manual_seed(3)
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            wide = "conv" in name or "embed" in name
            p.copy_(p + 0.5 * noise if p.dim() < 2 else noise * (0.7 if wide else 1.5 * p.shape[1] ** -0.5))
        return save_checkpoint(model, ASSETS / "tiny", tmp_path / f"{kind}-{group}-{d_state}")

    return save
