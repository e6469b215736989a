"""The mixer's three forms are one function; in fp64 they differ by rounding only.

Tolerance: outputs are of order 1 to 100 and are sums of at most a few thousand products, each good to 1e-16 relative,
so 1e-10 leaves two orders of slack, while any wrong index, decay or shift shows at order 1e-3 and above.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from thinkfast.models.mixers import Mamba, SSMState
from thinkfast.models.ragged import Ragged
from thinkfast.models.ssd import ssd_matrix

TIGHT = {"rtol": 0.0, "atol": 1e-10}


def mixer(make_spec: Any, make_model: Any, group: int = 2, dtype: torch.dtype = torch.float64) -> Mamba:
    found = make_model(make_spec("pure", group), dtype=dtype).blocks[0].mixer
    assert isinstance(found, Mamba)
    return found


@pytest.mark.parametrize("group", [1, 2, 3])
def test_module_forms_agree_on_ragged_input(group: int, make_spec: Any, make_model: Any) -> None:
    mamba, ragged = mixer(make_spec, make_model, group), Ragged(torch.tensor([1, 70, 3]))
    u = torch.randn(ragged.total, 48).double()
    out, state = mamba.prefill(u, ragged)
    z, inputs, steps = mamba._inputs(u)
    _, xbc, _ = mamba._convolve(inputs, steps, ragged)
    x = mamba._split(xbc[:, : ragged.max_len])[0]
    mixed = (mamba.matrix(u, ragged) @ x.repeat_interleave(group, 2).transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(mamba._finish(ragged.unpad(mixed), z), out, **TIGHT)  # the matrix holds D already
    start = 0
    for i, length in enumerate(ragged.lens.tolist()):
        cache = SSMState(torch.zeros_like(state.conv[:1]), torch.zeros_like(state.ssm[:1]))
        steps = torch.cat([mamba.step(u[t : t + 1], cache) for t in range(start, start + length)])
        torch.testing.assert_close(steps, out[start : start + length], **TIGHT)
        torch.testing.assert_close(cache.conv[0], state.conv[i], **TIGHT)
        torch.testing.assert_close(cache.ssm[0], state.ssm[i], **TIGHT)
        start += length


def test_right_padding_changes_neither_output_nor_state(make_spec: Any, make_model: Any) -> None:
    mamba = mixer(make_spec, make_model)
    u = torch.randn(5, 48).double()
    alone, state = mamba.prefill(u, Ragged(torch.tensor([5])))
    beside = torch.cat((u, torch.randn(100, 48).double()))
    packed, states = mamba.prefill(beside, Ragged(torch.tensor([5, 100])))
    torch.testing.assert_close(packed[:5], alone, **TIGHT)
    torch.testing.assert_close(states.conv[0], state.conv[0], **TIGHT)
    torch.testing.assert_close(states.ssm[0], state.ssm[0], **TIGHT)


@pytest.mark.parametrize("group", [1, 3])
def test_lengths_that_differ_much_are_padded_little_and_give_what_each_gives_alone(
    group: int, make_spec: Any, make_model: Any
) -> None:
    """With gradients too: training packs documents of all lengths."""
    mamba, lens = mixer(make_spec, make_model, group), [2, 90, 1, 0, 3, 40, 2, 2, 1]
    ragged = Ragged(torch.tensor(lens))
    assert ragged.alike is not None
    assert len(ragged.alike.parts) > 1
    u = torch.randn(sum(lens), 48).double().requires_grad_(True)
    together, state = mamba.prefill(u, ragged)
    weight = torch.randn_like(together)
    (gradient,) = torch.autograd.grad((together * weight).sum(), u)
    assert not state.conv[3].any()
    assert not state.ssm[3].any()
    start = 0
    for i, length in enumerate(lens):
        own = slice(start, start + length)
        if length:
            apart = u[own].detach().requires_grad_(True)
            y, kept = mamba.prefill(apart, Ragged(torch.tensor([length])))
            torch.testing.assert_close(together[own], y, **TIGHT)
            torch.testing.assert_close(state.conv[i], kept.conv[0], **TIGHT)
            torch.testing.assert_close(state.ssm[i], kept.ssm[0], **TIGHT)
            (one,) = torch.autograd.grad((y * weight[own]).sum(), apart)
            torch.testing.assert_close(gradient[own], one, **TIGHT)
        start += length


@pytest.mark.parametrize("length", [1, 2, 3, 4, 70])
def test_nothing_leaks_across_packed_documents(length: int, make_spec: Any, make_model: Any) -> None:
    mamba, ragged = mixer(make_spec, make_model), Ragged(torch.tensor([length, 6, length]))
    u = torch.randn(ragged.total, 48).double()
    changed = u.clone()
    changed[:length] += 1.0
    before, after = mamba(u, ragged), mamba(changed, ragged)
    assert torch.equal(before[length:], after[length:])
    assert not torch.equal(before[:length], after[:length])


def test_matrix_is_zero_past_each_end_and_holds_the_skip(make_spec: Any, make_model: Any) -> None:
    mamba, ragged = mixer(make_spec, make_model), Ragged(torch.tensor([3, 5]))
    u = torch.randn(8, 48).double()
    m = mamba.matrix(u, ragged)
    assert not m[0, :, 3:].any()
    _, xbc, dt = mamba._inputs(u)
    _, xbc, dt = mamba._convolve(xbc, dt, ragged)
    _, b, c = mamba._split(xbc[:, :5])
    skip = m - ssd_matrix(b, c, dt[:, :5], mamba._rates()) * ragged.valid[:, None, :, None]
    torch.testing.assert_close(skip[1], torch.eye(5).double() * mamba.D[:, None, None], **TIGHT)
    rows = torch.tensor([1, 4])
    torch.testing.assert_close(mamba.matrix(u, ragged, rows), m[:, :, rows], **TIGHT)


def test_bf16_weights_keep_slow_decays_for_1000_steps(make_spec: Any, make_model: Any) -> None:
    # exp(-1 / 512) rounds to 1 in bf16, and a decay formed in bf16 would end at several times the state.
    # bf16 inputs are good to 2^-9 each, and a state of hundreds of them averages that out: 3 % is generous.
    exact, rough = mixer(make_spec, make_model), mixer(make_spec, make_model, dtype=torch.bfloat16)
    for m in (exact, rough):
        m.dt_bias.fill_(math.log(math.expm1(1.0)))
        m.in_proj.weight[-6:] = 0  # dt is 1 for every token
        m.A_log.fill_(-6.25)  # exactly a bf16 number: tau = 518
    u = torch.randn(1000, 48).to(torch.bfloat16)
    ragged = Ragged(torch.tensor([1000]))
    want = exact.prefill(u.double(), ragged)[1].ssm
    prefilled = rough.prefill(u, ragged)[1].ssm
    assert prefilled.dtype == torch.float32
    cache = SSMState(torch.zeros(1, 3, exact.conv_weight.shape[0], dtype=torch.bfloat16), torch.zeros_like(prefilled))
    for t in range(1000):
        rough.step(u[t : t + 1], cache)
    for found in (prefilled, cache.ssm):
        assert float((found.double() - want).norm() / want.norm()) < 0.03


def test_step_takes_a_state_of_another_dtype(make_spec: Any, make_model: Any) -> None:
    mamba = mixer(make_spec, make_model, dtype=torch.float32)
    u = torch.randn(40, 48)
    want = mamba(u, Ragged(torch.tensor([40])))
    cache = SSMState(torch.zeros(1, 3, mamba.conv_weight.shape[0]), torch.zeros(1, 6, 8, 8, dtype=torch.bfloat16))
    out = torch.cat([mamba.step(u[t : t + 1], cache) for t in range(40)])
    assert cache.ssm.dtype == torch.bfloat16
    # Every step rounds the state to 8 bits; 40 of them leave a few per cent, a lost state would leave 100.
    assert float((out - want).norm() / want.norm()) < 0.05
