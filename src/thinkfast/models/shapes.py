"""Models of published shapes with random weights: what speed and memory depend on, with nothing to download.

A name is ``random:SHAPE`` for the teacher, ``random:SHAPE/pure-dN`` for a student of d_state N without attention, and
``random:SHAPE/hybridK-dN`` for one that keeps K attention layers, evenly spread, the last layer among them.

Usage: ``load_model("random:llama-3.2-1b/hybrid4-d16", torch.bfloat16, "cuda")``.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from thinkfast.errors import ModelError
from thinkfast.models.decoder import Decoder
from thinkfast.models.skeleton import skeleton
from thinkfast.models.sources.catalogue import RANDOM
from thinkfast.models.spec import ModelSpec

_ATTENTION = "attention"


def _llama(vocab: int, d: int, heads: int, kv: int, head: int, d_ff: int, layers: int) -> ModelSpec:
    return ModelSpec(vocab, d, heads, kv, head, d_ff, (_ATTENTION,) * layers, rope_theta=500000.0, max_positions=131072)


SHAPES = {
    "llama-3.2-1b": _llama(128256, 2048, 32, 8, 64, 8192, 16),
    "llama-3.2-3b": _llama(128256, 3072, 24, 8, 128, 8192, 28),
    "smollm2-135m": _llama(49152, 576, 9, 3, 64, 1536, 30),
    "qwen2.5-0.5b": replace(_llama(151936, 896, 14, 2, 64, 4864, 24), qkv_bias=True, family="qwen2"),
    "qwen2.5-1.5b": replace(_llama(151936, 1536, 12, 2, 128, 8960, 28), qkv_bias=True, family="qwen2"),
}
_VARIANT = re.compile(r"(?:pure|hybrid(?P<kept>\d+))-d(?P<state>\d+)")


def random_spec(name: str) -> ModelSpec:
    """The spec that a name stands for. Errors: ModelError saying which shapes and variants there are."""
    shape, _, variant = name.removeprefix(RANDOM).partition("/")
    if shape not in SHAPES:
        raise ModelError(f"unknown shape {shape!r}", remedy=f"pass {RANDOM} and one of {', '.join(SHAPES)}")
    teacher = SHAPES[shape]
    if not variant:
        return teacher
    found = _VARIANT.fullmatch(variant)
    if found is None or int(found["state"]) < 1:
        raise ModelError(f"unknown variant {variant!r}", remedy=f"write {RANDOM}{shape}/pure-d64 or /hybrid4-d16")
    layers, kept = teacher.n_layers, int(found["kept"] or 0)
    if kept >= layers:
        raise ModelError(f"{variant!r} keeps {kept} of {layers} layers", remedy=f"keep at most {layers - 1}")
    keep = tuple((i + 1) * layers // kept - 1 for i in range(kept))
    return teacher.as_student(keep, int(found["state"]))


def random_decoder(spec: ModelSpec, dtype: torch.dtype, device: str | torch.device, seed: int = 0) -> Decoder:
    """A decoder whose activations and states stay finite over any length; weights are made where they stay."""
    model = skeleton(spec)
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for name, p in model.named_parameters():
        out = torch.empty(p.shape, dtype=dtype, device=device)
        if p.dim() >= 2:
            out.normal_(0, 0.02, generator=generator)
        elif name.endswith("dt_bias"):
            out.fill_(-4.0)  # steps of about 0.02: memories of dozens of tokens
        else:
            out.fill_(0.0 if name.endswith(("bias", "A_log")) else 1.0)
        tensors[name] = out
    model.load_state_dict(tensors, strict=True, assign=True)
    model.reset_frequencies(device)
    return model.requires_grad_(False).eval()
