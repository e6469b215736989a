from __future__ import annotations

from typing import Any

import pytest
import torch

from thinkfast.models.attention import Attention, rope_frequencies, rope_tables
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import ModelSpec, RopeScaling

# fp64 sums of at most a few hundred terms of order 1: rounding stays far below, any wrong index far above.
TIGHT = {"rtol": 0.0, "atol": 1e-11}


@pytest.mark.parametrize("group", [1, 2, 3])
def test_matrix_form_times_values_is_the_full_form(group: int, make_spec: Any, make_model: Any) -> None:
    model = make_model(make_spec("teacher", group))
    attention, ragged = model.blocks[0].mixer, Ragged(torch.tensor([1, 7, 4]))
    assert isinstance(attention, Attention)
    x, rope = torch.randn(12, 48).double(), model.rope(ragged.positions)
    full, state = attention.prefill(x, ragged, rope)
    m = attention.matrix(x, ragged, rope)
    mixed = (m @ ragged.pad(state.v).repeat_interleave(group, 2).transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(attention.out(ragged.unpad(mixed).reshape(12, -1)), full, **TIGHT)
    assert not m[2, :, 4:].any()
    torch.testing.assert_close(m.sum(-1)[0, :, :1], torch.ones(6, 1).double(), **TIGHT)
    rows = torch.tensor([0, 5])
    torch.testing.assert_close(attention.matrix(x, ragged, rope, rows), m[:, :, rows], **TIGHT)


def test_causal_and_separate_per_sequence(make_spec: Any, make_model: Any) -> None:
    model = make_model(make_spec())
    attention, ragged = model.blocks[0].mixer, Ragged(torch.tensor([4, 6]))
    x, rope = torch.randn(10, 48).double(), model.rope(ragged.positions)
    changed = x.clone()
    changed[2] += 1.0
    same = (attention(x, ragged, rope) == attention(changed, ragged, rope)).all(-1)
    assert same.tolist() == [True, True, False, False] + [True] * 6


@pytest.mark.parametrize("group", [1, 3])
def test_lengths_that_differ_much_are_padded_little_and_give_what_each_gives_alone(
    group: int, make_spec: Any, make_model: Any
) -> None:
    """With gradients too: training packs documents of all lengths."""
    model = make_model(make_spec("teacher", group))
    attention, lens = model.blocks[0].mixer, [2, 90, 1, 3, 40, 2, 2, 1]
    ragged = Ragged(torch.tensor(lens))
    assert ragged.alike is not None
    assert len(ragged.alike.parts) > 1
    x = torch.randn(sum(lens), 48).double().requires_grad_(True)
    together, state = attention.prefill(x, ragged, model.rope(ragged.positions))
    weight = torch.randn_like(together)
    (gradient,) = torch.autograd.grad((together * weight).sum(), x)
    start = 0
    for length in lens:
        own = slice(start, start + length)
        alone = Ragged(torch.tensor([length]))
        apart = x[own].detach().requires_grad_(True)
        y, kept = attention.prefill(apart, alone, model.rope(alone.positions))
        torch.testing.assert_close(together[own], y, **TIGHT)
        torch.testing.assert_close(state.k[own], kept.k, **TIGHT)
        (one,) = torch.autograd.grad((y * weight[own]).sum(), apart)
        torch.testing.assert_close(gradient[own], one, **TIGHT)
        start += length


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "kv", "p"), [(32, 8, 64), (24, 8, 128), (7, 1, 16), (4, 4, 32)])
def test_tokens_behind_others_attend_as_a_mask_says(heads: int, kv: int, p: int, dtype: torch.dtype) -> None:
    """The operation that a GPU has for it, whose causal mask ends where the keys end."""
    g = torch.Generator().manual_seed(p)
    attention = Attention(ModelSpec(64, 64, heads, kv, p, 96, ("attention",), tie_embeddings=False))
    for tokens, before in ((1, 64), (64, 64), (300, 1024), (1000, 192)):
        whole = before + tokens
        sizes = (tokens, heads, p), (whole, kv, p), (whole, kv, p)
        q, k, v = (torch.randn(size, generator=g).to(dtype) for size in sizes)
        want = attention._behind(*(t.float() for t in (q, k, v)))
        found = attention._behind(*(t.cuda() for t in (q, k, v))).float().cpu()
        # Weights and sums are rounded to the dtype: 2^-8 for bf16, a little less over many keys.
        assert (found - want).norm() < 0.01 * want.norm()
        assert ((found - want).norm(dim=1) < 0.03 * want.norm(dim=1).mean()).all()


def test_rotation_depends_on_the_distance_only(make_spec: Any) -> None:
    frequencies = rope_frequencies(make_spec())
    q, k = torch.randn(1, 1, 8).double(), torch.randn(1, 1, 8).double()

    def score(i: int, j: int) -> float:
        at = [rope_tables(torch.tensor([p]), frequencies, torch.float64) for p in (i, j)]
        return float((at[0].rotate(q) * at[1].rotate(k)).sum())

    # Angles are fp32 by design: at position 900 they are good to 900 * 6e-8.
    assert score(905, 900) == pytest.approx(score(5, 0), abs=1e-3)
    assert score(5, 0) != pytest.approx(score(6, 0), abs=1e-3)
    assert score(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-12)


def test_llama3_scaling_leaves_fast_waves_and_stretches_slow_ones(make_spec: Any) -> None:
    plain = rope_frequencies(make_spec(head_dim=64, rope_theta=500000.0))
    scaled = rope_frequencies(
        make_spec(head_dim=64, rope_theta=500000.0, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192))
    )
    ratio = (plain / scaled).tolist()
    assert ratio[0] == 1.0
    assert ratio[-1] == pytest.approx(32.0)
    assert ratio == sorted(ratio)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_frequencies_stay_fp32_whatever_the_weights_become(dtype: torch.dtype, make_spec: Any, make_model: Any) -> None:
    model = make_model(make_spec(), dtype=torch.float32)
    want = rope_frequencies(model.spec)
    model.to(dtype)
    assert model.embed.weight.dtype == dtype
    assert model.frequencies.dtype == torch.float32
    assert torch.equal(model.frequencies, want)
