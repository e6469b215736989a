"""Sampled chains that part: whether rounding explains the token at which they do.

A token is drawn where the cumulative distribution passes one uniform number, the same for both runs. Rounding moves
the distribution a little, and where the number lies that close to a boundary two correct runs draw different tokens;
from there on they are other texts. So of two chains only the first difference is looked at: with the probabilities of
our own pass in fp64, both tokens must lie as near to the number as the logits are unsure there (conditioning.py).

Legend: V vocabulary.

Usage: ``count_partings(Noise(loaded), [Parting(prompt, key, ours, theirs)], temperature)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinkfast.engine.rng import uniform
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


def count_partings(noise: Noise, pairs: Sequence[Parting], temperature: float) -> tuple[int, str]:
    """How many of the pairs differ for another reason than rounding, and the remark that counts the others."""
    differing = [pair for pair in pairs if pair.ours != pair.theirs]
    # Where one goes on and the other has ended, no draw decides.
    drawn = [(pair, at) for pair in differing if (at := _first_difference(pair)) is not None]
    near = 0
    if drawn:
        noise.measure(pair.prompt + pair.ours[:at] for pair, at in drawn)
        near = sum(_explained(noise, pair, at, temperature) for pair, at in drawn)
    said = f"; {near} part where the draw falls on a boundary within rounding" if near else ""
    return len(differing) - near, said


def _first_difference(pair: Parting) -> int | None:
    return next((i for i, (a, b) in enumerate(zip(pair.ours, pair.theirs, strict=False)) if a != b), None)


def _explained(noise: Noise, pair: Parting, at: int, temperature: float) -> bool:
    before = pair.prompt + pair.ours[:at]
    true, slack = noise.logits(before)[-1], max(LOGITS, MARGIN * float(noise(before)[-1]))
    u = float(uniform(torch.tensor([pair.key]), torch.tensor([at])))
    # Logits off by s move the cumulative sum c by at most 2 s / T c (1 - c), which is at most s / (2 T).
    reach = slack / (2 * temperature) + CUMULATED
    return all(distance(true, token, u, temperature) <= reach for token in (pair.ours[at], pair.theirs[at]))


def distance(logits: Tensor, token: int, u: float, temperature: float) -> float:
    """How far ``u`` lies outside the stretch of the cumulative distribution, from logits [V], that draws ``token``."""
    probabilities = (logits.double() / temperature).softmax(-1)
    end = float(probabilities[: token + 1].sum())
    return max(0.0, end - float(probabilities[token]) - u, u - end)
