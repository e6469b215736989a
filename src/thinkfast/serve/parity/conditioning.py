"""Which differences rounding explains: a bound on logits is only fair where fp32 decides that many digits.

A per-head norm turns a mixer output near zero into one of full size, so at some positions of an untrained or barely
trained student the last bits of fp32 decide its direction, and two correct programs differ there by tenths of a logit.
How unsure fp32 is, is measured without the other program: ours in fp32, and ours with every weight moved by what
summing its row in the worst order would round, against ours in fp64. A position's allowance is the bound, or a few
times that where that is more, but never more than a hundred times the bound; and a row's figure is the worst
difference in parts of its allowance, on the scale of the bound, so that it passes exactly when every position does. Of
a trained model no position needs it. A wrong formula shows all the same: in fp64 (own.py) nothing is allowed for, and
here it shows wherever fp32 is sure.

Legend: L tokens of a sequence, S compared positions.

Usage: ``settle(Noise(loaded), [Gap(sequence, 0, differences)], LOGITS)``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from thinkfast.models.decoder import Decoder
from thinkfast.models.loading import Loaded
from thinkfast.serve.parity.sample import Divergence, our_logits

MARGIN = 8.0
"""The quotient of two errors has a long tail: among ten thousand positions of a student of SmolLM2 that nobody has
trained, two orders of the same sums differed by up to five times the largest of seven measured errors."""
MOST = 100.0
"""A position's allowance in bounds, at most: beyond, the model is not one that fp32 computes."""
SHAKES = 6
"""Fewer, and the largest error found at one of thousands of positions is small by luck somewhere."""
GROUP_BYTES = 1 << 30
HALF_ULP = 2.0**-24


@dataclass(frozen=True, slots=True)
class Gap:
    """Differences [S], largest over the vocabulary, at the positions from ``start`` on of ``sequence``."""

    sequence: tuple[int, ...]
    start: int
    sizes: Tensor


@dataclass(frozen=True, slots=True)
class Settled:
    """worst: the largest difference on the scale of the bound. unsure: positions with a wider allowance. said: the
    remark about them.
    """

    worst: float
    unsure: int
    said: str


def settle(noise: Noise, gaps: Sequence[Gap], bound: float) -> Settled:
    """The worst of ``gaps`` in parts of what is allowed; fp64 is only run where ``bound`` is exceeded."""
    sizes = torch.cat([gap.sizes.float().cpu() for gap in gaps])
    whole = float(sizes.max())
    if not bool(sizes.isfinite().all()):
        return Settled(float("nan"), 0, "; not finite")
    if whole <= bound:
        return Settled(whole, 0, "")
    noise.measure(gap.sequence for gap in gaps if bool((gap.sizes > bound).any()))
    allowed = torch.cat([_allowance(noise, gap, bound) for gap in gaps])
    wide = allowed > bound
    worst, count = float((sizes * bound / allowed).max()), int((wide & (sizes > bound)).sum())
    if count == 0:
        return Settled(worst, 0, "")
    said = f"; {count} of {len(sizes)} positions above the bound (up to {whole:.2g}), scaled to what fp32 decides there"
    return Settled(worst, count, said)


def _allowance(noise: Noise, gap: Gap, bound: float) -> Tensor:
    """What each of a gap's positions may differ by, [S]."""
    sizes = gap.sizes.float().cpu()
    if not bool((sizes > bound).any()):
        return torch.full_like(sizes, bound)
    unsure = noise(gap.sequence).float().cpu()
    # A few samples of an error may all be small by luck: a position is no surer than the sequence usually is.
    unsure = unsure.clamp_min(float(unsure.median()))[gap.start : gap.start + len(sizes)]
    return (MARGIN * unsure).clamp(bound, MOST * bound)


def count_divergences(noise: Noise, found: Sequence[Divergence | None], tolerance: float) -> tuple[int, str]:
    """How many chains differ for another reason than a tie that rounding may break, and the sentence that says so.

    A tie: our logits of the two tokens are apart by no more than twice the tolerance, or than fp32 is unsure there.
    """
    apart = [each for each in found if each is not None and each.margin > 2 * tolerance]
    ties = sum(each is not None for each in found) - len(apart)
    if apart:
        noise.measure(each.before for each in apart)
        clear = [each for each in apart if each.margin > 2 * MARGIN * float(noise(each.before)[-1])]
        apart, ties = clear, ties + len(apart) - len(clear)
    said = f"; {ties} part at a tie within rounding" if ties else ""
    if apart:
        worst = max(apart, key=lambda d: d.margin)
        said += f"; worst at token {worst.at}, margin {worst.margin:.2g}"
    return len(apart), said


class Noise:
    """Largest error that rounding makes in our own fp32 logits, by position, measured against fp64.

    One serves a whole parity run: what has been measured is kept, for a beginning of a sequence too.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._coarse = loaded
        self._errors: dict[tuple[int, ...], Tensor] = {}

    @cached_property
    def _fine(self) -> Loaded:
        return replace(self._coarse, model=copy.deepcopy(self._coarse.model).double())

    def __call__(self, sequence: tuple[int, ...]) -> Tensor:
        """[L]"""
        self.measure([sequence])
        return self._longer(sequence)[0][: len(sequence)]

    def _longer(self, sequence: tuple[int, ...]) -> list[Tensor]:
        """The errors of what begins as ``sequence`` does, itself included: what comes after has no say in them."""
        return [error for known, error in self._errors.items() if known[: len(sequence)] == sequence]

    def logits(self, sequence: Sequence[int]) -> Tensor:
        """Ours in fp64, [L, V]."""
        return our_logits(self._fine, sequence)

    def measure(self, sequences: Iterable[tuple[int, ...]]) -> None:
        """Measure many at once, for every shaking of the weights takes as long as a pass or two."""
        group: list[tuple[int, ...]] = []
        size = 0
        for sequence in dict.fromkeys(s for s in sequences if not self._longer(s)):
            bytes_each = 8 * len(sequence) * self._coarse.spec.vocab_size
            if group and size + bytes_each > GROUP_BYTES:
                self._measure(group)
                group, size = [], 0
            group.append(sequence)
            size += bytes_each
        if group:
            self._measure(group)

    @torch.inference_mode()
    def _measure(self, sequences: Sequence[tuple[int, ...]]) -> None:
        true = [self.logits(sequence) for sequence in sequences]
        shaken = replace(self._coarse, model=copy.deepcopy(self._coarse.model))
        for number in range(SHAKES + 1):
            if number:
                _shake(shaken.model, self._coarse.model, number)
            for sequence, want in zip(sequences, true, strict=True):
                error = (our_logits(shaken, sequence) - want).abs().amax(-1)
                known = self._errors.get(sequence)
                self._errors[sequence] = error if known is None else error.maximum(known)


def _shake(shaken: Decoder, model: Decoder, seed: int) -> None:
    """Set the weights of ``shaken`` to those of ``model``, each moved at random."""
    generator = torch.Generator(model.head_weight.device).manual_seed(seed)
    for weight, true in zip(shaken.parameters(), model.parameters(), strict=True):
        if weight.dim() > 1:
            # A running sum of K terms rounds K times: a random walk, where blocked sums take far fewer steps.
            size = HALF_ULP * weight.shape[-1] ** 0.5
            torch.randn(weight.shape, generator=generator, out=weight)
            weight.mul_(size).add_(1).mul_(true)
