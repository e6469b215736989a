"""A student with states that stay zero says what it says without them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkfast.models.decoder import Decoder
from thinkfast.models.fp8 import in_fp8, is_fp8
from thinkfast.models.mixers import Mamba
from thinkfast.models.padding import with_d_state
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import ModelSpec

TEACHER = ModelSpec(64, 48, 6, 2, 16, 80, ("attention",) * 3, tie_embeddings=False, max_positions=128)


def strong(spec: ModelSpec) -> Decoder:
    """Every weight at random, biases and gates too, so that a channel in another's place changes what is said."""
    model = Decoder(spec).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for value in model.parameters():
        noise = torch.randn(value.shape, generator=generator)
        value.copy_(noise * value.shape[-1] ** -0.5 if value.dim() > 1 else 1 + 0.3 * noise)
    return model


def said(model: Decoder) -> torch.Tensor:
    """Hidden states of two sequences in one batch."""
    tokens = (torch.arange(90) * 7) % 61
    return model(tokens, Ragged(torch.tensor([5, 85])))


@settings(max_examples=12, deadline=None)
@given(
    states=st.sampled_from([(1, 16), (5, 16), (16, 16), (24, 32), (33, 64)]),
    kept=st.sampled_from([(), (1,)]),
    heads=st.sampled_from([2, 6]),
    bias=st.booleans(),
)
def test_a_wider_student_says_the_same(states: tuple[int, int], kept: tuple[int, ...], heads: int, bias: bool) -> None:
    spec = replace(TEACHER.as_student(kept, states[0]), ssm_kv_heads=heads, ssm_bias=bias)
    model = strong(spec)
    wider = with_d_state(model, states[1])
    assert wider.spec == replace(spec, d_state=states[1])
    assert model.spec == spec
    # The same terms with zeros among them: fp32 sums in another order.
    torch.testing.assert_close(said(wider), said(model), rtol=1e-4, atol=1e-4)


def test_states_that_are_added_stay_zero_and_what_does_not_change_is_shared() -> None:
    model = strong(TEACHER.as_student((), 5))
    wider = with_d_state(model, 16)
    _, states = wider.prefill(torch.arange(9), Ragged(torch.tensor([9])))
    _, before = model.prefill(torch.arange(9), Ragged(torch.tensor([9])))
    for state, own in zip(states, before, strict=True):
        assert not state.ssm[..., 5:].any()
        torch.testing.assert_close(state.ssm[..., :5], own.ssm, rtol=1e-4, atol=1e-5)
        assert own.ssm.any()
    assert wider.embed.weight is model.embed.weight
    for a, b in zip(wider.blocks, model.blocks, strict=True):
        assert isinstance(a.mixer, Mamba)
        assert isinstance(b.mixer, Mamba)
        assert a.mlp.down.weight is b.mlp.down.weight
        assert a.mixer.out is b.mixer.out
        assert (b.mixer.d_state, a.mixer.d_state) == (5, 16)


@pytest.mark.parametrize("bias", [False, True])
def test_weights_in_eight_bits_are_the_same_before_and_after(bias: bool) -> None:
    model = strong(replace(TEACHER.as_student((1,), 24), ssm_bias=bias))
    after, before = with_d_state(in_fp8(model), 32), in_fp8(with_d_state(model, 32))
    assert is_fp8(after)
    for name, value in before.state_dict().items():
        other = after.state_dict()[name]
        # A row's scale is its largest over 448: there and back is a rounding of fp32.
        torch.testing.assert_close(other.float(), value.float(), rtol=3e-7, atol=0)
