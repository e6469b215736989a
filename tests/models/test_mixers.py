"""The mixer's three forms are one function; in fp64 they differ by rounding only.

Tolerance: outputs are of order 1 to 100 and are sums of at most a few thousand products, each good to 1e-16 relative,
so 1e-10 leaves two orders of slack, while any wrong index, decay or shift shows at order 1e-3 and above.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from thinkfast.models.mixers import (
    Mamba,
    SSMState,
    conv_parallel,
    conv_step,
    ssd_chunked,
    ssd_matrix,
    ssd_step,
)
from thinkfast.models.ragged import Ragged

TIGHT = {"rtol": 0.0, "atol": 1e-10}
LENGTHS = (1, 2, 3, 4, 5, 63, 64, 65, 130)
H, P, N = 6, 5, 7


def inputs(length: int, group: int, n: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, B, C, dt, A of n sequences; decays from a few tokens to hundreds."""
    kv = H // group
    x, b = torch.randn(n, length, kv, P).double(), torch.randn(n, length, kv, N).double()
    c, dt = torch.randn(n, length, H, N).double(), F.softplus(torch.randn(n, length, H).double())
    return x, b, c, dt, -torch.logspace(-3, 0.5, H, dtype=torch.float64)


def stepped(x: Tensor, b: Tensor, c: Tensor, dt: Tensor, a: Tensor, state: Tensor) -> Tensor:
    steps = [ssd_step(x[:, t], b[:, t], c[:, t], dt[:, t], a, state) for t in range(x.shape[1])]
    return torch.stack(steps, 1)


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("length", LENGTHS)
def test_chunked_step_and_matrix_are_equal(length: int, group: int) -> None:
    x, b, c, dt, a = inputs(length, group)
    chunked, final = ssd_chunked(x, b, c, dt, a)
    state = torch.zeros_like(final)
    step = stepped(x, b, c, dt, a, state)
    values = x.repeat_interleave(group, dim=2).transpose(1, 2)
    matrix = (ssd_matrix(b, c, dt, a) @ values).transpose(1, 2)
    torch.testing.assert_close(chunked, step, **TIGHT)
    torch.testing.assert_close(chunked, matrix, **TIGHT)
    torch.testing.assert_close(final, state, **TIGHT)


@pytest.mark.parametrize("chunk", [1, 16, 64, 256])
def test_chunk_size_and_split_do_not_matter(chunk: int) -> None:
    x, b, c, dt, a = inputs(75, 3)
    whole, final = ssd_chunked(x, b, c, dt, a)
    y1, state = ssd_chunked(x[:, :20], b[:, :20], c[:, :20], dt[:, :20], a, chunk)
    y2, end = ssd_chunked(x[:, 20:], b[:, 20:], c[:, 20:], dt[:, 20:], a, chunk, initial=state)
    torch.testing.assert_close(torch.cat((y1, y2), 1), whole, **TIGHT)
    torch.testing.assert_close(end, final, **TIGHT)


def test_matrix_is_the_formula_of_its_docstring() -> None:
    _, b, c, dt, a = inputs(5, 2, n=1)
    found = ssd_matrix(b, c, dt, a)
    for h in range(H):
        for i in range(5):
            for j in range(5):
                decay = math.exp(float(dt[0, j + 1 : i + 1, h].sum() * a[h]))
                want = float(c[0, i, h] @ b[0, j, h // 2]) * decay * float(dt[0, j, h]) if j <= i else 0.0
                assert float(found[0, h, i, j]) == pytest.approx(want, abs=1e-12)


def test_picked_rows_are_rows_of_the_whole_matrix() -> None:
    _, b, c, dt, a = inputs(20, 2)
    rows = torch.tensor([0, 3, 19])
    torch.testing.assert_close(ssd_matrix(b, c, dt, a, rows), ssd_matrix(b, c, dt, a)[:, :, rows], **TIGHT)


def test_padding_with_zero_dt_leaves_the_state_alone() -> None:
    x, b, c, dt, a = inputs(70, 2)
    _, state = ssd_chunked(x[:, :50], b[:, :50], c[:, :50], dt[:, :50], a)
    dt[:, 50:] = 0
    _, padded = ssd_chunked(1e3 * x, b, c, dt, a)  # the tail is loud, and still must not be heard
    torch.testing.assert_close(padded, 1e3 * state, rtol=1e-12, atol=0)


def test_conv_is_torchs_conv1d_and_its_step() -> None:
    u, weight, bias = torch.randn(2, 9, 6).double(), torch.randn(6, 4).double(), torch.randn(6).double()
    window = F.pad(u, (0, 0, 3, 0))
    parallel = conv_parallel(window, weight, bias)
    reference = F.conv1d(window.transpose(1, 2), weight[:, None], bias, groups=6).transpose(1, 2)
    torch.testing.assert_close(parallel, reference, **TIGHT)
    state = torch.zeros(2, 3, 6).double()
    steps = torch.stack([conv_step(u[:, t], state, weight, bias) for t in range(9)], 1)
    torch.testing.assert_close(steps, parallel, **TIGHT)
    assert torch.equal(state, u[:, -3:])


def mixer(make_spec: Any, make_model: Any, group: int = 2, dtype: torch.dtype = torch.float64) -> Mamba:
    found = make_model(make_spec("pure", group), dtype=dtype).blocks[0].mixer
    assert isinstance(found, Mamba)
    return found


@pytest.mark.parametrize("group", [1, 2, 3])
def test_module_forms_agree_on_ragged_input(group: int, make_spec: Any, make_model: Any) -> None:
    mamba, ragged = mixer(make_spec, make_model, group), Ragged(torch.tensor([1, 70, 3]))
    u = torch.randn(ragged.total, 48).double()
    out, state = mamba.prefill(u, ragged)
    z, _, x, _, _, _ = mamba._inputs(u, ragged)
    mixed = (mamba.matrix(u, ragged) @ x.repeat_interleave(group, 2).transpose(1, 2)).transpose(1, 2)
    no_skip = torch.zeros_like(ragged.unpad(x))  # the matrix holds D already
    torch.testing.assert_close(mamba._finish(ragged.unpad(mixed), no_skip, z), out, **TIGHT)
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
    _, _, _, b, c, dt = mamba._inputs(u, ragged)
    skip = m - ssd_matrix(b, c, dt, mamba._rates()) * ragged.valid[:, None, :, None]
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
