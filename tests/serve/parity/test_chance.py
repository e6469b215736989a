"""Chains that part at a boundary of the draw are rounding's doing; all others are counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thinkfast.engine.llm import LLM
from thinkfast.engine.request import Request, SamplingParams
from thinkfast.engine.rng import sample_key, uniform
from thinkfast.models.loading import Loaded
from thinkfast.serve.parity.chance import Parting, count_partings, distance
from thinkfast.serve.parity.conditioning import Noise
from thinkfast.serve.parity.sample import our_logits

PROMPT = (7, 9, 11, 200, 31, 6)
TEMPERATURE, NEW = 0.8, 8


@pytest.fixture(scope="module")
def loaded(make: Any) -> Loaded:
    found: Loaded = make("hybrid")
    return found


def test_the_engine_draws_the_token_that_the_number_falls_on(loaded: Loaded) -> None:
    params = SamplingParams(n=4, temperature=TEMPERATURE, max_tokens=NEW, seed=3, ignore_eos=True)
    for chain in LLM(loaded, max_batch=4, max_len=20).stream([Request("q", PROMPT, params)]):
        logits = our_logits(loaded, PROMPT + chain.tokens)[len(PROMPT) - 1 : -1]
        key = torch.tensor([sample_key(3, "q", chain.index)])
        for i, token in enumerate(chain.tokens):
            u = float(uniform(key, torch.tensor([i])))
            assert distance(logits[i], token, u, TEMPERATURE) < 1e-5


def test_distance_to_a_stretch() -> None:
    logits = torch.tensor([0.2, 0.3, 0.5]).log() * TEMPERATURE
    assert distance(logits, 1, 0.3, TEMPERATURE) == 0.0
    assert distance(logits, 0, 0.3, TEMPERATURE) == pytest.approx(0.1)
    assert distance(logits, 2, 0.3, TEMPERATURE) == pytest.approx(0.2)


def parting(loaded: Loaded, key: int, shift: int) -> Parting:
    """Two one-token chains: what the number draws, and the token ``shift`` places on."""
    u = float(uniform(torch.tensor([key]), torch.tensor([0])))
    total = (our_logits(loaded, PROMPT)[-1].double() / TEMPERATURE).softmax(-1).cumsum(-1)
    token = int((total <= u).sum())
    return Parting(PROMPT, key, (token,), ((token + shift) % len(total),))


def test_only_a_draw_on_a_boundary_is_explained(loaded: Loaded) -> None:
    total = (our_logits(loaded, PROMPT)[-1].double() / TEMPERATURE).softmax(-1).cumsum(-1)
    keys = torch.arange(20_000)
    numbers = uniform(keys.clone(), torch.zeros_like(keys)).double()
    above = torch.searchsorted(total, numbers)
    gap = (total[above.clamp_max(len(total) - 1)] - numbers).abs()
    near, far = int(gap.argmin()), int(gap.argmax())
    assert float(gap[near]) < 1e-6 < 1e-3 < float(gap[far])
    explained, counted = parting(loaded, near, 1), parting(loaded, far, 1)
    assert count_partings(Noise(loaded), [explained], TEMPERATURE) == (
        0,
        "; 1 part where the draw falls on a boundary within rounding",
    )
    assert count_partings(Noise(loaded), [counted, counted], TEMPERATURE) == (2, "")
    # The boundary explains its two neighbours, not a token elsewhere.
    assert count_partings(Noise(loaded), [parting(loaded, near, 40)], TEMPERATURE)[0] == 1


def test_equal_chains_and_one_that_ends_early(loaded: Loaded) -> None:
    same = Parting(PROMPT, 1, (5, 6), (5, 6))
    assert count_partings(Noise(loaded), [same], TEMPERATURE) == (0, "")
    assert count_partings(Noise(loaded), [Parting(PROMPT, 1, (5, 6), (5,))], TEMPERATURE)[0] == 1
