"""Sampled chains that part: whether rounding explains the token at which they do.

A token is drawn where the cumulative distribution passes one uniform number, the same for both runs. Rounding moves
the distribution a little, and where the number lies that close to a boundary two correct runs draw different tokens;
from there on they are other texts. So of two chains only the first difference is looked at: with the probabilities of
our own pass in fp64, both tokens must lie as near to the number as the logits are unsure there (conditioning.py).

Legend: V vocabulary.

Usage: ``count_partings(loaded, [Parting(prompt, key, ours, theirs)], temperature)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinkfast.engine.rng import uniform
from thinkfast.models.loading import Loaded
from thinkfast.serve.parity.conditioning import MARGIN, Noise
from thinkfast.serve.parity.sample import LOGITS

CUMULATED = 1e-5
"""What an fp32 sum over a vocabulary may be off by: some 50,000 terms, each rounded at 2^-24 of a sum below one."""


@dataclass(frozen=True, slots=True)
class Parting:
    """Two chains that should be one: their prompt, the random key of their sample (engine/rng.py), their tokens."""

    prompt: tuple[int, ...]
    key: int
    ours: tuple[int, ...]
    theirs: tuple[int, ...]


def count_partings(loaded: Loaded, pairs: Sequence[Parting], temperature: float) -> tuple[int, str]:
    """How many of the pairs differ for another reason than rounding, and the remark that counts the others."""
    noise, apart, near = None, 0, 0
    for pair in pairs:
        if pair.ours == pair.theirs:
            continue
        noise = noise or Noise(loaded)
        if _explained(noise, pair, temperature):
            near += 1
        else:
            apart += 1
    return apart, f"; {near} part where the draw falls on a boundary within rounding" if near else ""


def _explained(noise: Noise, pair: Parting, temperature: float) -> bool:
    both = list(zip(pair.ours, pair.theirs, strict=False))
    at = next((i for i, (a, b) in enumerate(both) if a != b), None)
    if at is None:
        return False  # one goes on where the other has ended: no draw decides that
    before = pair.prompt + pair.ours[:at]
    true, unsure = noise.measure(before)
    slack = max(LOGITS, MARGIN * float(unsure[-1]))
    u = float(uniform(torch.tensor([pair.key]), torch.tensor([at])))
    # Logits off by s move the cumulative sum c by at most 2 s / T c (1 - c), which is at most s / (2 T).
    reach = slack / (2 * temperature) + CUMULATED
    return all(distance(true[-1], token, u, temperature) <= reach for token in both[at])


def distance(logits: Tensor, token: int, u: float, temperature: float) -> float:
    """How far ``u`` lies outside the stretch of the cumulative distribution, from logits [V], that draws ``token``."""
    probabilities = (logits.double() / temperature).softmax(-1)
    end = float(probabilities[: token + 1].sum())
    return max(0.0, end - float(probabilities[token]) - u, u - end)
