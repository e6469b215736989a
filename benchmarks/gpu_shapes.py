"""Models of the sizes that GPU figures are given for, with random bf16 weights made where they are used.

from gpu_shapes import load; loaded = load("hybrid4-1b-d16", torch.device("cuda"))
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from thinkfast.models.decoder import Decoder
from thinkfast.models.loading import Loaded
from thinkfast.models.spec import ModelSpec

_LAYERS = {"1b": 16, "3b": 28}
_KEPT = {
    ("1b", 4): (3, 7, 11, 15), ("1b", 2): (5, 11), ("3b", 6): (3, 8, 13, 18, 23, 27), ("3b", 2): (9, 18),
}  # fmt: skip


def spec_of(name: str) -> ModelSpec:
    """teacher-1b, pure-1b-d64, hybrid4-1b-d16 (4 attention layers kept), and so on for 3b."""
    kind, size, *state = name.split("-")
    layers = ("attention",) * _LAYERS[size]
    wide = (128256, 2048, 32, 8, 64, 8192) if size == "1b" else (128256, 3072, 24, 8, 128, 8192)
    teacher = ModelSpec(*wide, layers, rope_theta=500000.0, max_positions=131072)
    if kind == "teacher":
        return teacher
    kept = re.fullmatch(r"hybrid(\d+)", kind)
    return teacher.as_student(_KEPT[size, int(kept[1])] if kept else (), d_state=int(state[0][1:]))


class NoTokenizer:
    """Stands where a run of forced length over token ids needs none."""

    eos_ids = frozenset({128001})
    vocab_size = 128256

    def decode(self, ids: Sequence[int]) -> str:
        return ""


@torch.no_grad()
def random_model(spec: ModelSpec, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Decoder:
    """Random weights that keep activations finite."""
    torch.manual_seed(0)
    with device:
        model = Decoder(spec).to(dtype).eval().requires_grad_(False)
        for name, p in model.named_parameters():
            if p.dim() >= 2:
                p.normal_(0, 0.5 if name.endswith("conv_weight") else 0.02)
            elif name.endswith("A_log"):
                p.uniform_(-4, 0)
            elif name.endswith("dt_bias"):
                p.uniform_(-4, -1)
    return model


def load(name: str, device: torch.device) -> Loaded:
    """A random model under its name."""
    spec = spec_of(name)
    return Loaded(name, Path(), spec, random_model(spec, device), cast(Any, NoTokenizer()), "")
