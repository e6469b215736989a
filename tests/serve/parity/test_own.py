"""The comparisons of our own forms: right forms pass, and each sees the fault that it is there for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from thinkfast.engine.llm import LLM
from thinkfast.models.loading import Loaded
from thinkfast.models.mixers import Mamba
from thinkfast.models.ragged import Ragged
from thinkfast.serve.parity import drift as drifting
from thinkfast.serve.parity import own
from thinkfast.serve.parity.conditioning import Noise
from thinkfast.serve.parity.drift import drift
from thinkfast.serve.parity.sample import Greedy, draw_sample, our_logits, our_logprobs

KINDS = ("teacher", "hybrid", "pure")
NEW = 8


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, make: Any) -> tuple[Loaded, list[Greedy]]:
    loaded: Loaded = make(request.param)
    prompts = [[7, 9, 11, 200, 31, 6], [5], [300, 301], [40, 41, 42, 43], [8, 8, 8], list(range(60, 90))]
    return loaded, draw_sample(loaded, prompts, NEW)


def test_the_sample_is_greedy_by_the_parallel_form(case: tuple[Loaded, list[Greedy]]) -> None:
    loaded, chains = case
    for chain in chains:
        logits = our_logits(loaded, chain.sequence)
        assert tuple(logits[len(chain.prompt) - 1 : -1].argmax(-1).tolist()) == chain.tokens
        logprobs = our_logprobs(loaded, chain.sequence)
        assert logprobs.shape == (len(chain.sequence) - 1,)
        assert torch.allclose(logprobs[-1], logits[-2].log_softmax(-1)[chain.tokens[-1]])


def test_all_forms_agree(case: tuple[Loaded, list[Greedy]]) -> None:
    loaded, chains = case
    noise = Noise(loaded)
    checks = [
        own.prefill_against_step(loaded, chains, noise),
        own.fine_prefill_against_step(loaded, chains),
        own.one_against_ragged(loaded, chains, noise),
        own.fine_one_against_ragged(loaded, chains),
        own.alone_against_together(loaded, chains[:3], NEW, noise),
        own.fork_against_independent(loaded, chains[:2], NEW, noise),
    ]
    assert [check.status for check in checks] == ["passed"] * 6, checks
    assert "prefilled 1 to 30 tokens" in checks[0].detail
    assert "6 sampled chains" in checks[4].detail


def test_a_wrong_step_breaks_prefill_against_step(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: Loaded = make("hybrid")
    chains = draw_sample(loaded, [[7, 9, 11, 200, 31, 6], [5, 6, 7]], NEW)
    step = Mamba.step

    def twice_the_bias(self: Mamba, u: Tensor, cache: Any) -> Tensor:
        self.dt_bias.data.mul_(2)
        out = step(self, u, cache)
        self.dt_bias.data.div_(2)
        return out

    monkeypatch.setenv("THINKFAST_NATIVE", "0")  # the compiled step does not call it
    monkeypatch.setattr(Mamba, "step", twice_the_bias)
    assert own.prefill_against_step(loaded, chains, Noise(loaded)).status == "broken"
    assert own.fine_prefill_against_step(loaded, chains).status == "broken"
    assert own.one_against_ragged(loaded, chains, Noise(loaded)).status == "passed"


def test_a_leak_between_packed_prompts_breaks_the_ragged_row(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: Loaded = make("pure")
    chains = draw_sample(loaded, [[7, 9, 11, 200, 31, 6], [5, 6, 7]], NEW)
    whole = loaded.model

    class Packed(torch.nn.Module):
        """One document where there are several."""

        def __getattr__(self, name: str) -> Any:
            return getattr(whole, name)

        def forward(self, tokens: Tensor, ragged: Ragged) -> Tensor:
            return whole(tokens, Ragged(torch.tensor([ragged.total])))

    leaky = replace(loaded, model=Packed())  # type: ignore[arg-type]
    assert own.one_against_ragged(leaky, chains, Noise(leaky)).status == "broken"


def test_randomness_that_depends_on_company_breaks_the_chain_rows(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: Loaded = make("pure")
    chains = draw_sample(loaded, [[7, 9, 11], [5, 6, 7]], NEW)
    stream: Callable[..., Any] = LLM.stream

    def by_company(self: LLM, requests: Any, *rest: Any) -> Any:
        alone = len(requests) == 1 or requests[0].params.n == 1
        for chain in stream(self, requests, *rest):
            yield replace(chain, tokens=(*chain.tokens[:-1], 3 if alone else 4))

    monkeypatch.setattr(LLM, "stream", by_company)
    together = own.alone_against_together(loaded, chains, NEW, Noise(loaded))
    assert (together.value, together.status) == (4.0, "broken")
    forked = own.fork_against_independent(loaded, chains, NEW, Noise(loaded))
    assert (forked.value, forked.status) == (16.0, "broken")


@pytest.mark.parametrize("kind", KINDS)
def test_drift_is_measured_against_one_pass(kind: str, make: Any) -> None:
    loaded: Loaded = make(kind)
    chains = draw_sample(loaded, [[7, 9, 11]], NEW)
    check, curve = drift(loaded, chains, 60)
    assert check.value is not None
    assert 0.3 < check.value < 20
    assert check.detail.startswith("60 steps")
    assert len(curve) == 20
    assert curve[-1][0] == 60
    assert all(0 < stepped and 0 < parallel for _, stepped, parallel in curve)
    if kind == "teacher":  # nothing is carried but rounded keys and values, which one pass rounds as well
        assert check.value < 2


def test_drift_stops_where_the_positions_end(make: Any) -> None:
    loaded = make("hybrid", max_positions=40)
    check, _ = drift(loaded, draw_sample(loaded, [[7, 9, 11]], NEW), 60)
    assert "32 steps" in check.detail
    assert "40 positions" in check.detail


def test_errors_that_pile_up_in_the_state_break_the_drift(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: Loaded = make("pure")
    chains = draw_sample(loaded, [[7, 9, 11]], NEW)
    steps = drifting.step_logits

    def piling(model: Loaded, *rest: Any) -> Any:
        coarse = model.model.head_weight.dtype == torch.bfloat16
        for i, logits in enumerate(steps(model, *rest)):
            yield logits + coarse * 0.02 * i * torch.randn(logits.shape, generator=torch.Generator().manual_seed(i))

    monkeypatch.setattr(drifting, "step_logits", piling)
    check, curve = drift(loaded, chains, 60)
    assert check.status == "broken"
    assert curve[-1][1] > 10 * curve[0][1]
