"""Only what rounding explains is allowed for, up to a limit, and never a NaN."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from thinkfast.serve.parity.conditioning import Gap, Noise, count_divergences, settle
from thinkfast.serve.parity.sample import Divergence

BOUND = 2e-4
SEQUENCE = tuple(range(10, 50))


class Fixed(Noise):
    """Rounding's error as it is given."""

    def __init__(self, noise: Tensor | None = None) -> None:
        self._noise = noise

    def measure(self, sequences: Any) -> None:
        assert self._noise is not None, "nothing is to be measured"

    def __call__(self, sequence: Any) -> Tensor:
        assert self._noise is not None
        return self._noise


def gap(**sizes: float) -> Gap:
    values = torch.full((40,), 1e-5)
    for at, size in sizes.items():
        values[int(at[1:])] = size
    return Gap(SEQUENCE, 0, values)


def test_within_the_bound_nothing_is_asked() -> None:
    fixed = Fixed()
    settled = settle(fixed, [gap(_3=1.9e-4)], BOUND)
    assert (settled.worst, settled.unsure, settled.said) == (pytest.approx(1.9e-4), 0, "")


def test_what_noise_explains_is_scaled_and_said() -> None:
    noise = torch.full((40,), 1e-6)
    noise[7] = 2e-3
    fixed = Fixed(noise)
    settled = settle(fixed, [gap(_7=4e-3, _9=5e-5)], BOUND)
    assert settled.worst == pytest.approx(BOUND / 4)  # a quarter of the 16e-3 that position 7 is allowed
    assert settled.unsure == 1
    assert "1 of 40 positions above the bound (up to 0.004)" in settled.said


def test_what_it_does_not_explain_counts() -> None:
    noise = torch.full((40,), 1e-6)
    noise[7] = 2e-3
    fixed = Fixed(noise)
    assert settle(fixed, [gap(_8=5e-3)], BOUND).worst == pytest.approx(5e-3)
    assert settle(fixed, [gap(_7=17e-3)], BOUND).worst > BOUND
    # ``start`` says which positions are compared.
    late = Gap(SEQUENCE, 5, torch.tensor([1e-5, 1e-5, 5e-3]))
    assert settle(fixed, [late], BOUND).worst < BOUND
    assert settle(fixed, [Gap(SEQUENCE, 4, late.sizes)], BOUND).worst == pytest.approx(5e-3)


def test_no_position_is_surer_than_the_sequence_usually_is() -> None:
    noise = torch.full((40,), 5e-4)
    noise[7] = 1e-8
    fixed = Fixed(noise)
    assert settle(fixed, [gap(_7=3.9e-3)], BOUND).worst < BOUND
    assert settle(fixed, [gap(_7=4.1e-3)], BOUND).worst > BOUND


def test_a_model_that_fp32_does_not_compute_is_no_excuse() -> None:
    fixed = Fixed(torch.full((40,), 1.0))
    assert settle(fixed, [gap(_7=0.5)], BOUND).worst > BOUND


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_never_explained(bad: float) -> None:
    fixed = Fixed(torch.full((40,), 1.0))
    assert math.isnan(settle(fixed, [gap(_3=bad)], BOUND).worst)


def test_noise_is_what_fp32_gets_wrong(make: Any) -> None:
    loaded = make("pure")
    measure = Noise(loaded)
    measure.measure([SEQUENCE, SEQUENCE[:20]])
    noise = measure(SEQUENCE)
    assert noise.shape == (40,)
    assert torch.allclose(measure(SEQUENCE[:20]), noise[:20], rtol=0.9)  # what comes after has no say
    assert bool((noise > 0).all())
    assert float(noise.max()) < 1e-2
    assert loaded.model.head_weight.dtype == torch.float32


def test_a_tie_is_no_divergence() -> None:
    fixed = Fixed(torch.tensor([1e-6, 1e-2]))
    tie, clear = Divergence(3, SEQUENCE, 1e-4), Divergence(5, SEQUENCE, 0.5)
    unsure = Divergence(4, SEQUENCE, 0.05)  # fp32 is unsure by 0.01 at the last position before it
    found = [None, tie, unsure, clear]
    count, said = count_divergences(fixed, found, BOUND)
    assert count == 1
    assert "2 part at a tie" in said
    assert "worst at token 5, margin 0.5" in said
    assert count_divergences(fixed, [None], BOUND) == (0, "")
