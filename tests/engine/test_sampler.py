from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from toy_models import row_params

from thinkfast.engine.request import SamplingParams
from thinkfast.engine.sampler import CANDIDATES, Draw, RowParams, draw, mix_of


def sample(logits: Tensor, params: RowParams) -> Draw:
    return draw(logits, params, mix_of(params))


def expected(logits: Tensor, p: SamplingParams) -> Tensor:
    """The distribution by the book, token by token, in float64."""
    probs = (logits.double() / p.temperature).softmax(-1)
    order = sorted(range(len(probs)), key=lambda i: -float(probs[i]))
    kept = order[: p.top_k or None]
    if p.top_p < 1:
        mass = sum(float(probs[i]) for i in kept)
        ends = itertools.accumulate(float(probs[i]) / mass for i in kept)
        kept = kept[: next((n for n, end in enumerate(ends, 1) if end >= p.top_p), len(kept))]
    kept = [i for i in kept if probs[i] >= p.min_p * probs[order[0]]]
    result = torch.zeros_like(probs)
    result[kept] = probs[kept] / probs[kept].sum()
    return result


CASES = [
    SamplingParams(),
    SamplingParams(temperature=0.5),
    SamplingParams(temperature=2.5),
    SamplingParams(top_k=5),
    SamplingParams(top_k=CANDIDATES + 20),
    SamplingParams(top_p=0.7),
    SamplingParams(top_p=0.999, temperature=3),
    SamplingParams(min_p=0.2),
    SamplingParams(min_p=0.001, temperature=3),
    SamplingParams(top_k=CANDIDATES + 20, top_p=0.9, temperature=4),
    SamplingParams(top_k=20, top_p=0.8, min_p=0.1, temperature=0.9),
]


@pytest.mark.parametrize("p", CASES, ids=str)
@pytest.mark.parametrize("size", [8, 200])
def test_chi_square(p: SamplingParams, size: int) -> None:
    n = 40_000
    logits = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 2
    want = expected(logits, p)
    tokens = sample(logits.expand(n, -1), row_params([p] * n)).tokens
    counts = torch.bincount(tokens, minlength=size).double()
    assert counts[want == 0].sum() == 0
    # Cells of small expectation are pooled, as the test's approximation asks.
    big = want * n >= 10
    observed, hoped = counts[big].tolist(), (want[big] * n).tolist()
    if (want[~big].sum() * n) >= 10:
        observed.append(float(counts[~big].sum()))
        hoped.append(float(want[~big].sum() * n))
    chi_square = sum((o - e) ** 2 / e for o, e in zip(observed, hoped, strict=True))
    freedom = len(hoped) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5 + 4


def test_the_chi_square_test_can_fail() -> None:
    logits = torch.randn(8, generator=torch.Generator().manual_seed(8)) * 2
    wrong = expected(logits, SamplingParams(temperature=0.9))
    tokens = sample(logits.expand(40_000, -1), row_params([SamplingParams()] * 40_000)).tokens
    counts = torch.bincount(tokens, minlength=8)
    assert ((counts - wrong * 40_000) ** 2 / (wrong * 40_000)).sum() > 60


@pytest.mark.parametrize("p", [SamplingParams(temperature=0), SamplingParams(temperature=5, top_k=1)])
def test_greedy(p: SamplingParams) -> None:
    logits = torch.randn(16, 100)
    logits[3, 7] = logits[3, 70] = 9.0  # a tie goes to the lower token, as argmax has it
    assert sample(logits, row_params([p] * 16)).tokens.equal(logits.argmax(-1))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits = torch.randn(len(CASES), 200) * 2
    together = sample(logits, row_params(CASES, drawn=5))
    for i, p in enumerate(CASES):
        alone = sample(logits[i : i + 1], row_params([p], drawn=5, first=i))
        assert alone.tokens.item() == together.tokens[i].item()
        assert alone.logprobs.item() == together.logprobs[i].item()


def test_logprob_is_the_models_at_temperature_one() -> None:
    logits = torch.randn(4, 50)
    found = sample(logits, row_params([SamplingParams(temperature=0.3, top_k=3)] * 4))
    assert found.logprobs.equal(logits.log_softmax(-1).gather(1, found.tokens[:, None]).squeeze(1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("fill", [False, True])
def test_a_row_that_is_not_finite_is_named_and_touches_no_other(bad: float, fill: bool) -> None:
    logits = torch.randn(len(CASES), 200)
    good = sample(logits, row_params(CASES))
    for i in range(len(CASES)):
        broken = logits.clone()
        broken[i, slice(None) if fill else 17] = bad
        found = sample(broken, row_params(CASES))
        others = [j for j in range(len(CASES)) if j != i]
        assert found.finite.tolist() == [j != i for j in range(len(CASES))]
        assert found.tokens[others].equal(good.tokens[others])
        assert 0 <= found.tokens[i] < 200


def test_the_largest_uniform_draws_the_last_token_of_positive_probability() -> None:
    from thinkfast.engine.sampler import _invert

    probs = torch.rand(500, 300)
    probs[:, 250:] = 0
    assert (_invert(probs, torch.full((500, 1), 1 - 2.0**-23)) < 250).all()
    assert (_invert(probs.flip(1), torch.zeros(500, 1)) >= 50).all()
