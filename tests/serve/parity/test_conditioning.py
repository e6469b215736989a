"""Only differences that rounding explains are left out, only a few of them, and never a NaN."""

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
    assert (settled.worst, settled.left_out, settled.said) == (pytest.approx(1.9e-4), 0, "")


def test_what_noise_explains_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = torch.full((40,), 1e-6)
    noise[7] = 2e-3
    with_noise(monkeypatch, noise)
    settled = settle(None, [gap(_7=5e-3, _9=1e-4)], BOUND)  # type: ignore[arg-type]
    assert settled.worst == pytest.approx(1e-4)
    assert settled.left_out == 1
    assert "left out 1 of 40" in settled.said
    assert "0.005" in settled.said


def test_what_it_does_not_explain_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = torch.full((40,), 1e-6)
    noise[7] = 2e-3
    with_noise(monkeypatch, noise)
    assert settle(None, [gap(_8=5e-3)], BOUND).worst == pytest.approx(5e-3)  # type: ignore[arg-type]
    assert settle(None, [gap(_7=9e-3)], BOUND).worst == pytest.approx(9e-3)  # type: ignore[arg-type]
    # ``start`` says which positions are compared.
    late = Gap(SEQUENCE, 5, torch.tensor([1e-5, 1e-5, 5e-3]))
    early = Gap(SEQUENCE, 0, torch.full((200,), 1e-5))
    assert settle(None, [late, early], BOUND).left_out == 1  # type: ignore[arg-type]
    assert settle(None, [Gap(SEQUENCE, 4, late.sizes), early], BOUND).left_out == 0  # type: ignore[arg-type]


def test_too_many_are_no_excuse(monkeypatch: pytest.MonkeyPatch) -> None:
    with_noise(monkeypatch, torch.full((40,), 1.0))
    settled = settle(None, [Gap(SEQUENCE, 0, torch.full((40,), 0.5))], BOUND)  # type: ignore[arg-type]
    assert (settled.worst, settled.left_out) == (0.5, 0)
    assert "too many" in settled.said


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_never_explained(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with_noise(monkeypatch, torch.full((40,), 1.0))
    assert math.isnan(settle(None, [gap(_3=bad)], BOUND).worst)  # type: ignore[arg-type]


def test_noise_is_what_fp32_gets_wrong(make: Any) -> None:
    loaded = make("pure")
    noise = Noise(loaded)(SEQUENCE)
    assert noise.shape == (40,)
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
