from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from thinkfast.errors import ModelError
from thinkfast.models import transfer as module
from thinkfast.models.decoder import Decoder
from thinkfast.models.mixers import Mamba
from thinkfast.models.ragged import Ragged
from thinkfast.models.transfer import GATE, InputMoments, _cut_rank, input_moments, plan_transfer, transfer

TIGHT = {"rtol": 0.0, "atol": 1e-12}
H, P, D = 6, 8, 48


def batches(count: int = 2) -> list[tuple[Tensor, Ragged]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(0, 50, (120,), generator=generator), Ragged(torch.tensor([70, 50]))) for _ in range(count)]


def distilled(teacher: Decoder, keep: tuple[int, ...] = (), d_state: int | None = None) -> Decoder:
    plan = plan_transfer(teacher.spec, teacher.spec.as_student(keep, d_state))
    return transfer(teacher, plan, input_moments(teacher, batches()), seed=0).requires_grad_(False)


def first_mixer(student: Decoder) -> Mamba:
    mixer = student.blocks[0].mixer
    assert isinstance(mixer, Mamba)
    return mixer


def projected(mixer: Mamba, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """z, x, B, C, dt rows of the input projection, before convolution and SiLU."""
    z, xbc, dt = mixer.in_proj(u).split(mixer.sizes, dim=-1)
    x, b, c = xbc.split(mixer.conv_sizes, dim=-1)
    return z, x, b, c, dt


def unit(rows: Tensor, heads: int) -> Tensor:
    """Rows [R, ...] of ``heads`` heads, each head's scaled to unit length: the mixer's norm sees nothing else."""
    blocks = rows.reshape(heads, -1)
    return (blocks / blocks.norm(dim=1, keepdim=True)).view_as(rows)


def scores(c: Tensor, b: Tensor, n: int) -> Tensor:
    """C_i . B_j of every head, [H, T, T]."""
    c, b = c.view(len(c), H, n), b.view(len(b), -1, n)
    return torch.einsum("ihn,jhn->hij", c, b.repeat_interleave(H // b.shape[1], 1))


def test_plan_reads_like_what_will_happen(make_spec: Any) -> None:
    teacher = make_spec()
    plan = plan_transfer(teacher, teacher.as_student((1,), 4))
    assert [str(layer) for layer in plan.layers] == [
        "layer 0: V->x, K->B, Q->C, O->out, rank 8 cut to 4",
        "layer 1: attention kept",
        "layer 2: V->x, K->B, Q->C, O->out, rank 8 cut to 4",
    ]
    full = plan_transfer(teacher, teacher.as_student(())).layers[0]
    assert "cut" not in str(full)
    assert (full.rank, full.of) == (8, 8)


@pytest.mark.parametrize("d_state", [3, 8, 16])
@pytest.mark.parametrize("bias", [False, True])
def test_every_parameter_is_set(
    bias: bool, d_state: int, make_spec: Any, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unset(spec: Any) -> Decoder:
        model = Decoder(spec)
        for p in model.parameters():
            torch.nn.init.constant_(p, float("nan"))
        return model

    teacher = make_model(make_spec("teacher", 2, qkv_bias=bias))
    moments = input_moments(teacher, batches())
    monkeypatch.setattr(module, "Decoder", unset)
    keep = () if bias else (1,)
    student = transfer(teacher, plan_transfer(teacher.spec, teacher.spec.as_student(keep, d_state)), moments)
    for name, p in student.named_parameters():
        assert p.isfinite().all(), name
        assert p.requires_grad, name


@pytest.mark.parametrize("group", [1, 2, 3])
def test_rows_land_where_they_should(group: int, make_spec: Any, make_model: Any) -> None:
    teacher = make_model(make_spec("teacher", group))
    student = distilled(teacher, keep=(1,))
    attention, mixer = teacher.blocks[0].mixer, first_mixer(student)
    k = 6 // group
    q, key, v = attention.qkv.weight.split([H * P, k * P, k * P])
    z, x, b, c, dt = mixer.in_proj.weight.split([H * P, k * P, k * P, H * P, H])
    for ours, theirs, heads in ((x, v, k), (b, key, k), (c, q, H)):
        torch.testing.assert_close(unit(ours, heads), unit(theirs, heads), **TIGHT)
    assert not dt.any()
    assert (z == z[0]).all()
    assert torch.equal(mixer.out.weight, attention.out.weight)
    assert mixer.conv_weight[:, -1].eq(1).all()
    assert not mixer.conv_weight[:, :-1].any()
    assert not mixer.D.any()
    torch.testing.assert_close(F.softplus(mixer.dt_bias), torch.ones(H).double(), **TIGHT)
    memory = (-mixer._rates()).reciprocal()
    assert memory.tolist() == sorted(memory.tolist())
    assert 15 < memory[0] < 17
    assert 511 < memory[-1] < 513


@pytest.mark.parametrize("tied", [True, False])
def test_everything_but_replaced_mixers_is_copied(tied: bool, make_spec: Any, make_model: Any) -> None:
    teacher = make_model(make_spec("teacher", 2, tie_embeddings=tied))
    ours, theirs = distilled(teacher, keep=(1,)).state_dict(), teacher.state_dict()
    shared = [name for name in ours if ".mixer." not in name or name.startswith("layers.1.")]
    assert {name for name in theirs if ".mixer." not in name} <= set(shared)
    assert sum(".mixer." in name for name in shared) == 2
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_at_full_rank_query_key_products_are_exact_and_bias_is_folded(
    bias: bool, group: int, make_spec: Any, make_model: Any
) -> None:
    teacher = make_model(make_spec("teacher", group, qkv_bias=bias))
    mixer, u = first_mixer(distilled(teacher)), torch.randn(30, D).double()
    q, key, v = teacher.blocks[0].mixer.qkv(u).split([H * P, H // group * P, H // group * P], dim=-1)
    _, x, b, c, _ = projected(mixer, u)
    torch.testing.assert_close(unit(x.T, H // group), unit(v.T, H // group), **TIGHT)
    torch.testing.assert_close(unit(scores(c, b, P), H), unit(scores(q, key, P), H), **TIGHT)
    assert mixer.out(torch.zeros(1, D).double()).eq(0).all()


def test_spare_states_start_small_but_trainable(make_spec: Any, make_model: Any) -> None:
    teacher = make_model(make_spec("teacher", 2))
    mixer, u = first_mixer(distilled(teacher, d_state=12)), torch.randn(30, D).double()
    q, key, _ = teacher.blocks[0].mixer.qkv(u).split([H * P, 3 * P, 3 * P], dim=-1)
    _, _, b, c, _ = projected(mixer, u)
    found, want = unit(scores(c, b, 12), H), unit(scores(q, key, P), H)
    # Four spare products of (1e-3 * sqrt(48)) each: far below scores of order 10, and not zero.
    assert 0 < float((found - want).abs().max()) < 4 * (6e-3 * 7) ** 2
    assert c.view(30, H, 12)[:, :, P:].abs().min() > 0
    assert b.view(30, 3, 12)[:, :, P:].abs().min() > 0


def anisotropic(tokens: int = 4000) -> Tensor:
    """Inputs whose variance falls by 1e4 over directions, in a random basis, around a mean."""
    basis = torch.linalg.qr(torch.randn(D, D).double()).Q
    return torch.randn(tokens, D).double() @ (torch.logspace(0, -2, D).double()[:, None] * basis) + 0.3


def moments_of(u: Tensor) -> InputMoments:
    return InputMoments(u.mean(0), u.T @ u / len(u), torch.ones(H).double())


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("group", [1, 3])
def test_rank_cut_is_eckart_youngs_optimum_in_whitened_space(group: int, rank: int) -> None:
    u, kv = anisotropic(), H // group
    centred = u - u.mean(0)
    root = torch.linalg.cholesky(centred.T @ centred / len(u))
    q, key = torch.randn(kv, group, P, D + 1).double(), torch.randn(kv, P, D + 1).double()
    q[..., -1], key[..., -1] = 0, 0
    new_q, new_key = _cut_rank(q, key, moments_of(u), rank)
    assert new_q.shape == (kv, group, rank, D + 1)
    assert new_key.shape == (kv, rank, D + 1)
    for i in range(kv):
        whole = torch.cat([(q[i, g, :, :D] @ root).T @ (key[i, :, :D] @ root) for g in range(group)])
        cut = torch.cat([(new_q[i, g, :, :D] @ root).T @ (new_key[i, :, :D] @ root) for g in range(group)])
        lost = torch.linalg.svdvals(whole)[rank:].square().sum()
        # The covariance is damped by 1e-6, so the optimum is met to about that.
        assert float((whole - cut).square().sum()) == pytest.approx(float(lost), rel=1e-3)


@pytest.mark.parametrize("group", [1, 2])
def test_covariance_beats_plain_svd_on_anisotropic_inputs(group: int) -> None:
    u, kv, rank = anisotropic(600), H // group, 3
    q, key = torch.randn(kv, group, P, D + 1).double(), torch.randn(kv, P, D + 1).double()
    q[..., -1], key[..., -1] = 0, 0
    centred = F.pad(u - u.mean(0), (0, 1))

    def error(new_q: Tensor, new_key: Tensor) -> float:
        want = torch.einsum("id,kgpd,kpe,je->kgij", centred, q, key, centred)
        got = torch.einsum("id,kgrd,kre,je->kgij", centred, new_q, new_key, centred)
        return float((want - got).square().sum() / want.square().sum())

    plain = _cut_rank(
        q, key, InputMoments(torch.zeros(D).double(), torch.eye(D).double(), torch.ones(H).double()), rank
    )
    weighted = error(*_cut_rank(q, key, moments_of(u), rank))
    assert weighted < 0.6 * error(*plain)


def test_rank_cut_shrinks_the_projection_and_keeps_most_of_the_scores(make_spec: Any, make_model: Any) -> None:
    teacher = make_model(make_spec("teacher", 2))
    student = distilled(teacher, d_state=6)
    assert student.spec.d_state == 6
    tokens, ragged = batches(1)[0]
    u = teacher.blocks[0].input_norm(teacher.embed(tokens))
    u = u - u.mean(0)
    q, key, _ = teacher.blocks[0].mixer.qkv(u).split([H * P, 3 * P, 3 * P], dim=-1)
    _, _, b, c, _ = projected(first_mixer(student), u)
    found, want = unit(scores(c, b, 6), H), unit(scores(q, key, P), H)
    assert float((found - want).square().sum() / want.square().sum()) < 0.3
    assert student(tokens, ragged).isfinite().all()


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_mixer_starts_in_silus_linear_part_and_at_the_heads_own_size(
    bias: bool, group: int, make_spec: Any, make_model: Any
) -> None:
    teacher = make_model(make_spec("teacher", group, qkv_bias=bias))
    mixer = first_mixer(distilled(teacher))
    tokens = torch.cat([t for t, _ in batches()])
    normed = teacher.blocks[0].input_norm(teacher.embed(tokens))
    for rows in projected(mixer, normed)[1:4]:
        power = rows.view(len(tokens), -1, P).square().mean((0, 2)).sqrt()
        torch.testing.assert_close(power, torch.full_like(power, module.LINEAR), rtol=1e-6, atol=0)
    squares = torch.zeros(H).double()
    for t, ragged in batches():
        normed = teacher.blocks[0].input_norm(teacher.embed(t))
        gathered, _ = teacher.blocks[0].mixer.heads(normed, ragged, teacher.rope(ragged.positions))
        squares += gathered.view(len(t), H, P).square().sum((0, 2)) / P
    torch.testing.assert_close(mixer.norm_weight.view(H, P)[:, 0], (squares / 240).sqrt(), **TIGHT)


def test_gate_is_nearly_constant_where_inputs_share_a_direction(make_spec: Any, make_model: Any) -> None:
    teacher = make_model(make_spec())
    teacher.embed.weight.add_(3.0)
    mixer = first_mixer(distilled(teacher))
    tokens = torch.cat([t for t, _ in batches()])
    z = projected(mixer, teacher.blocks[0].input_norm(teacher.embed(tokens)))[0]
    assert float(z.mean()) == pytest.approx(GATE, rel=0.1)
    assert float(z.std()) < 0.1 * GATE


def test_gate_is_the_least_squares_fit_of_a_constant(make_spec: Any, make_model: Any) -> None:
    teacher = make_model(make_spec())
    mixer = first_mixer(distilled(teacher))
    u = teacher.blocks[0].input_norm(teacher.embed(torch.cat([t for t, _ in batches()])))
    row = mixer.in_proj.weight[0].clone().requires_grad_(True)
    ridge = 1e-4 * u.square().mean()  # keeps the solve safe where the inputs span less than D directions
    fit = (u @ row - GATE).square().mean() + ridge * row.square().sum()
    (slope,) = torch.autograd.grad(fit, row)
    assert float(slope.abs().max()) < 1e-10
    assert fit.item() < 0.1 * GATE**2  # and not by being zero


def test_moments_are_those_of_the_normed_inputs(make_spec: Any, make_model: Any) -> None:
    teacher = make_model(make_spec())
    (t1, r1), (t2, r2) = batches()
    found = input_moments(teacher, [(t1, r1), (t2, r2)])
    x = torch.cat([teacher.blocks[0](teacher.embed(t), r, teacher.rope(r.positions)) for t, r in ((t1, r1), (t2, r2))])
    u = teacher.blocks[1].input_norm(x)
    torch.testing.assert_close(found[1].mean, u.mean(0), **TIGHT)
    torch.testing.assert_close(found[1].second, u.T @ u / 240, rtol=0, atol=1e-11)
    with pytest.raises(ModelError, match="no tokens"):
        input_moments(teacher, [])


def test_transfer_is_a_function_of_teacher_and_seed(make_spec: Any, make_model: Any) -> None:
    teacher = make_model(make_spec("teacher", 2))
    before = {name: t.clone() for name, t in teacher.state_dict().items()}
    first, again = (distilled(teacher, (), 12).state_dict() for _ in range(2))
    assert all(torch.equal(again[name], t) for name, t in first.items())
    assert all(torch.equal(teacher.state_dict()[name], t) for name, t in before.items())


def test_student_follows_the_teachers_dtype_but_not_its_frequencies(make_spec: Any, make_model: Any) -> None:
    teacher = make_model(make_spec(), dtype=torch.bfloat16)
    student = distilled(teacher, keep=(1,))
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
    assert torch.equal(student.frequencies, teacher.frequencies)
    assert student.frequencies.dtype == torch.float32
    assert student(*batches(1)[0]).isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [
        {"d_ff": 41},
        {"vocab_size": 51},
        {"n_kv_heads": 3, "ssm_kv_heads": 3},
        {"layer_types": ("mamba",) * 4},
        {"tie_embeddings": False},
        {"rope_theta": 1e6},
        {"norm_eps": 1e-6},
    ],
    ids=str,
)
def test_a_student_of_other_sizes_is_refused_by_field(changes: dict[str, Any], make_spec: Any) -> None:
    teacher = make_spec()
    name = "n_layers" if "layer_types" in changes else next(iter(changes))
    with pytest.raises(ModelError, match=name):
        plan_transfer(teacher, replace(teacher.as_student(()), **changes))


def test_teachers_that_cannot_be_linear_are_refused(make_spec: Any) -> None:
    hybrid = make_spec("hybrid")
    with pytest.raises(ModelError, match="already has Mamba"):
        plan_transfer(hybrid, hybrid.as_student(()))
    normed = make_spec(qk_norm=True)
    with pytest.raises(ModelError, match="qk-norm"):
        plan_transfer(normed, normed.as_student(()))


def test_what_would_be_lost_or_unsaveable_is_refused_before_any_work(make_spec: Any) -> None:
    biased = make_spec(qkv_bias=True)
    with pytest.raises(ModelError, match="bias would be lost"):
        plan_transfer(biased, replace(biased.as_student(()), ssm_bias=False))
    wide = make_spec(head_dim=16)
    with pytest.raises(ModelError, match="heads x head_dim"):
        plan_transfer(wide, wide.as_student(()))
    grouped = make_spec("teacher", 2)
    with pytest.raises(ModelError, match="6 heads"):
        plan_transfer(grouped, replace(grouped.as_student(()), ssm_kv_heads=6))
