"""Only what rounding explains is allowed for, up to a limit, and never a NaN."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from thinkfast.serve.parity import conditioning
from thinkfast.serve.parity.conditioning import Gap, Noise, count_divergences, settle
from thinkfast.serve.parity.sample import Divergence

BOUND = 2e-4
SEQUENCE = tuple(range(10, 50))


def with_noise(monkeypatch: pytest.MonkeyPatch, noise: Tensor) -> None:
    class Fixed:
        def __init__(self, loaded: Any) -> None:
            pass

        def measure(self, sequences: Any) -> None:
            pass

        def __call__(self, sequence: Any) -> Tensor:
            return noise

    monkeypatch.setattr(conditioning, "Noise", Fixed)


def gap(**sizes: float) -> Gap:
    values = torch.full((40,), 1e-5)
    for at, size in sizes.items():
        values[int(at[1:])] = size
    return Gap(SEQUENCE, 0, values)


def test_within_the_bound_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditioning, "Noise", None)
    settled = settle(None, [gap(_3=1.9e-4)], BOUND)  # type: ignore[arg-type]
    assert (settled.worst, settled.unsure, settled.said) == (pytest.approx(1.9e-4), 0, "")


def test_what_noise_explains_is_scaled_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = torch.full((40,), 1e-6)
    noise[7] = 2e-3
    with_noise(monkeypatch, noise)
    settled = settle(None, [gap(_7=4e-3, _9=5e-5)], BOUND)  # type: ignore[arg-type]
    assert settled.worst == pytest.approx(BOUND / 2)  # half of the 8e-3 that position 7 is allowed
    assert settled.unsure == 1
    assert "1 of 40 positions above the bound (up to 0.004)" in settled.said


def test_what_it_does_not_explain_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = torch.full((40,), 1e-6)
    noise[7] = 2e-3
    with_noise(monkeypatch, noise)
    assert settle(None, [gap(_8=5e-3)], BOUND).worst == pytest.approx(5e-3)  # type: ignore[arg-type]
    assert settle(None, [gap(_7=9e-3)], BOUND).worst > BOUND  # type: ignore[arg-type]
    # ``start`` says which positions are compared.
    late = Gap(SEQUENCE, 5, torch.tensor([1e-5, 1e-5, 5e-3]))
    assert settle(None, [late], BOUND).worst < BOUND  # type: ignore[arg-type]
    assert settle(None, [Gap(SEQUENCE, 4, late.sizes)], BOUND).worst == pytest.approx(5e-3)  # type: ignore[arg-type]


def test_no_position_is_surer_than_the_sequence_usually_is(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = torch.full((40,), 5e-4)
    noise[7] = 1e-8
    with_noise(monkeypatch, noise)
    assert settle(None, [gap(_7=1.9e-3)], BOUND).worst < BOUND  # type: ignore[arg-type]
    assert settle(None, [gap(_7=2.1e-3)], BOUND).worst > BOUND  # type: ignore[arg-type]


def test_a_model_that_fp32_does_not_compute_is_no_excuse(monkeypatch: pytest.MonkeyPatch) -> None:
    with_noise(monkeypatch, torch.full((40,), 1.0))
    assert settle(None, [gap(_7=0.5)], BOUND).worst > BOUND  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_never_explained(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with_noise(monkeypatch, torch.full((40,), 1.0))
    assert math.isnan(settle(None, [gap(_3=bad)], BOUND).worst)  # type: ignore[arg-type]


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


def test_a_tie_is_no_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    with_noise(monkeypatch, torch.tensor([1e-6, 1e-2]))
    tie, clear = Divergence(3, SEQUENCE, 1e-4), Divergence(5, SEQUENCE, 0.5)
    unsure = Divergence(4, SEQUENCE, 0.05)  # fp32 is unsure by 0.01 at the last position before it
    found = [None, tie, unsure, clear]
    count, said = count_divergences(None, found, BOUND)  # type: ignore[arg-type]
    assert count == 1
    assert "2 part at a tie" in said
    assert "worst at token 5, margin 0.5" in said
    assert count_divergences(None, [None], BOUND) == (0, "")  # type: ignore[arg-type]
