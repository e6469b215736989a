"""Toy models of every kind with strong random weights, and the smallest tokenizer that can stand in for one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from thinkfast.engine.llm import LLM
from thinkfast.engine.request import SamplingParams
from thinkfast.engine.rng import sample_key
from thinkfast.engine.sampler import RowParams
from thinkfast.models.decoder import Decoder
from thinkfast.models.loading import Loaded
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import ModelSpec

# Embeddings are not tied: random tied ones make a model that repeats its last token.
TEACHER = ModelSpec(64, 32, 6, 2, 8, 48, ("attention",) * 3, tie_embeddings=False, max_positions=1024)
SPECS = {
    "teacher": TEACHER,
    "teacher-mha": ModelSpec(64, 32, 4, 4, 8, 48, ("attention",) * 2, tie_embeddings=False, max_positions=1024),
    "hybrid": TEACHER.as_student(keep=(1,), d_state=4),
    "pure": TEACHER.as_student(keep=(), d_state=16),
}
EOS = 3


class ToyTokenizer:
    """Token i is the character chr(48 + i)."""

    vocab_size = 64
    eos_ids = frozenset({EOS})

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(48 + i) for i in ids)

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return [self.decode(ids) for ids in rows]

    def chat(self, question: str) -> list[int]:
        return [(ord(c) - 48) % 64 for c in question]


def random_model(spec: ModelSpec, seed: int = 0) -> Decoder:
    """Weights strong enough that a wrong key, decay or state changes the logits visibly."""
    model = Decoder(spec).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if "norm" in name or name.endswith(".D"):
            p.copy_(1 + 0.1 * noise)
        elif "A_log" in name:
            p.copy_(0.5 * noise - 2)
        elif "dt_bias" in name:
            p.copy_(noise - 1)
        elif "embed" in name:
            p.copy_(0.5 * noise)
        else:
            p.copy_(noise * p.shape[-1] ** -0.5)
    return model


def loaded(kind: str, seed: int = 0) -> Loaded:
    spec = SPECS[kind]
    return Loaded(kind, Path(), spec, random_model(spec, seed), cast(Any, ToyTokenizer()), "")


def engine(kind: str, max_batch: int = 8, max_len: int = 400) -> LLM:
    return LLM(loaded(kind), max_batch=max_batch, max_len=max_len)


def reference_logprobs(model: Decoder, prompt: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """[len(tokens), V] by one full forward pass over prompt and answer."""
    sequence = torch.tensor([*prompt, *tokens])
    logits = model.logits(model(sequence, Ragged(torch.tensor([len(sequence)]))))
    return logits.log_softmax(-1)[len(prompt) - 1 : -1]


def row_params(params: list[SamplingParams], drawn: int = 0, first: int = 0) -> RowParams:
    """The sampler's columns for rows with ``params``."""
    return RowParams(
        key=torch.tensor([sample_key(p.seed, "r", first + i) for i, p in enumerate(params)]),
        drawn=torch.full((len(params),), drawn),
        inverse_temperature=torch.tensor([1.0 if p.greedy else 1 / p.temperature for p in params]),
        top_k=torch.tensor([p.top_k for p in params]),
        top_p=torch.tensor([p.top_p for p in params]),
        min_p=torch.tensor([p.min_p for p in params]),
        greedy=torch.tensor([p.greedy for p in params]),
    )
