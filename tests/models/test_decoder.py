"""Whole models: packed = separate, prefill then step = full forward, for every family and group size.

Tolerance: three layers in fp64 with outputs of order 1 to 10; 1e-10 is far above rounding and far below any real fault.
"""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from typing import Any

import pytest
import torch

from thinkfast.models.attention import KVState
from thinkfast.models.decoder import Decoder, LayerState, Past, init_weights
from thinkfast.models.ragged import Ragged

TIGHT = {"rtol": 0.0, "atol": 1e-10}
KINDS = ["teacher", "hybrid", "pure"]
GROUPS = [1, 2, 3]
# The convolution is 4 wide and a chunk 64 long: on, before and behind both edges (FACTS.md, section 5).
PROMPTS = (1, 2, 3, 4, 5, 63, 64, 65, 130)
EXTRA = 6


@pytest.fixture(params=[(kind, group) for kind in KINDS for group in GROUPS], ids=lambda p: f"{p[0]}-gqa{p[1]}")
def model(request: pytest.FixtureRequest, make_spec: Any, make_model: Any) -> Decoder:
    found: Decoder = make_model(make_spec(*request.param))
    return found


def separate(model: Decoder, tokens: torch.Tensor, lens: tuple[int, ...]) -> list[torch.Tensor]:
    return [model(t, Ragged(torch.tensor([len(t)]))) for t in tokens.split(list(lens))]


def test_packed_is_separate(model: Decoder) -> None:
    tokens = torch.randint(0, 50, (sum(PROMPTS),))
    packed = model(tokens, Ragged(torch.tensor(PROMPTS)))
    torch.testing.assert_close(packed, torch.cat(separate(model, tokens, PROMPTS)), **TIGHT)


def test_prefill_then_step_is_full_forward(model: Decoder, make_caches: Any) -> None:
    lens = tuple(p + EXTRA for p in PROMPTS)
    whole = torch.randint(0, 50, (sum(lens),)).split(list(lens))
    full = model(torch.cat(whole), Ragged(torch.tensor(lens))).split(list(lens))
    ragged = Ragged(torch.tensor(PROMPTS))
    hidden, states = model.prefill(torch.cat([t[:p] for t, p in zip(whole, PROMPTS, strict=True)]), ragged)
    want = torch.stack([f[p - 1] for f, p in zip(full, PROMPTS, strict=True)])
    torch.testing.assert_close(hidden, want, **TIGHT)
    caches = make_caches(states, ragged)
    for i in range(EXTRA):
        at = [p + i for p in PROMPTS]
        tokens = torch.stack([t[p] for t, p in zip(whole, at, strict=True)])
        out = model.step(tokens, torch.tensor(at), caches)
        torch.testing.assert_close(out, torch.stack([f[p] for f, p in zip(full, at, strict=True)]), **TIGHT)


@pytest.mark.parametrize("cuts", [(64, 75), (1, 2, 3, 7), (32,), (301,)])
def test_a_prompt_in_pieces_is_the_prompt(model: Decoder, cuts: tuple[int, ...]) -> None:
    # More than 256 tokens behind others: their mask is made in two parts.
    tokens = torch.randint(0, 50, (302,))
    hidden, whole = model.prefill(tokens, Ragged(torch.tensor([302])))
    states: list[LayerState] = []
    for begin, end in pairwise((0, *cuts, 302)):
        past = Past(begin, iter(states)) if begin else None
        found, new = model.prefill(tokens[begin:end], Ragged(torch.tensor([end - begin])), past)
        states = [joined(*both) for both in zip(states, new, strict=True)] if begin else new
    torch.testing.assert_close(found, hidden, **TIGHT)
    for state, want in zip(states, whole, strict=True):
        for field in fields(want):
            torch.testing.assert_close(getattr(state, field.name), getattr(want, field.name), **TIGHT)


def joined(before: LayerState, new: LayerState) -> LayerState:
    if isinstance(before, KVState) and isinstance(new, KVState):
        return KVState(torch.cat((before.k, new.k)), torch.cat((before.v, new.v)))
    return new


def test_a_row_is_the_same_alone_and_in_a_batch(model: Decoder, make_caches: Any) -> None:
    ragged = Ragged(torch.tensor([4, 9]))
    tokens = torch.randint(0, 50, (13,))
    _, states = model.prefill(tokens, ragged)
    both = model.step(torch.tensor([7, 8]), torch.tensor([4, 9]), make_caches(states, ragged))
    one = Ragged(torch.tensor([9]))
    _, states = model.prefill(tokens[4:], one)
    alone = model.step(torch.tensor([8]), torch.tensor([9]), make_caches(states, one))
    torch.testing.assert_close(both[1:], alone, **TIGHT)


def test_64_steps_carry_the_state_and_a_fresh_state_does_not(make_spec: Any, make_model: Any, make_caches: Any) -> None:
    model = make_model(make_spec("hybrid", 2))
    tokens = torch.randint(0, 50, (70,))
    full = model(tokens, Ragged(torch.tensor([70])))
    ragged = Ragged(torch.tensor([6]))
    _, states = model.prefill(tokens[:6], ragged)
    caches = make_caches(states, ragged)
    steps = torch.cat([model.step(tokens[i : i + 1], torch.tensor([i]), caches) for i in range(6, 70)])
    torch.testing.assert_close(steps, full[6:], **TIGHT)
    cold = make_caches(states, ragged)
    cold[0].ssm.zero_()
    assert (model.step(tokens[6:7], torch.tensor([6]), cold) - full[6]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes",
    [
        {"qkv_bias": True},
        {"tie_embeddings": False},
        {"head_dim": 16},
        {"d_conv": 2},
        {"qk_norm": True},
        {"d_state": 3},
        {"d_state": 16},
    ],
    ids=str,
)
def test_every_variant_steps_as_it_prefills(
    kind: str, changes: dict[str, Any], make_spec: Any, make_model: Any, make_caches: Any
) -> None:
    model = make_model(make_spec(kind, 2, **changes))
    tokens, ragged = torch.randint(0, 50, (8,)), Ragged(torch.tensor([7]))
    full = model(tokens, Ragged(torch.tensor([8])))
    _, states = model.prefill(tokens[:7], ragged)
    out = model.step(tokens[7:], torch.tensor([7]), make_caches(states, ragged))
    torch.testing.assert_close(out, full[7:], **TIGHT)
    assert model.logits(out).shape == (1, 50)


def test_a_later_token_never_changes_an_earlier_output(model: Decoder) -> None:
    tokens = torch.randint(0, 50, (80,))
    changed = tokens.clone()
    changed[40] = (changed[40] + 1) % 50
    ragged = Ragged(torch.tensor([80]))
    before, after = model(tokens, ragged), model(changed, ragged)
    torch.testing.assert_close(before[:40], after[:40], **TIGHT)
    assert ((before[40:] - after[40:]).abs().amax(-1) > 1e-9).all()


def test_trace_is_the_forward_pass_with_its_stream(model: Decoder) -> None:
    tokens, ragged = torch.randint(0, 50, (9,)), Ragged(torch.tensor([4, 5]))
    hidden, stream = model.trace(tokens, ragged)
    assert len(stream) == 3
    assert torch.equal(hidden, model(tokens, ragged))
    assert torch.equal(model.norm(stream[-1]), hidden)
    first = model.blocks[0](model.embed(tokens), ragged, model.rope(ragged.positions))
    assert torch.equal(stream[0], first)
    assert model.trace(tokens, ragged, keep=False)[1] == []


def test_fresh_weights_are_a_function_of_the_seed(make_spec: Any) -> None:
    first, again, other = (Decoder(make_spec()) for _ in range(3))
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        init_weights(model, seed)
    for p, q, r in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        assert p.dim() < 2 or not torch.equal(p, r)
    assert first.embed.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert first.blocks[0].mlp.down.weight.std().item() == pytest.approx(0.02 * 6**-0.5, rel=0.1)
