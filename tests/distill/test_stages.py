from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from thinkfast.data.corpus import Batch
from thinkfast.distill.losses import matrix_error, relative_error
from thinkfast.distill.recipe import StageConfig
from thinkfast.distill.stages import Align, Imitate, Orient, make_stage, mamba_layers
from thinkfast.errors import ConfigError
from thinkfast.models.decoder import Decoder
from thinkfast.models.mixers import Mamba
from thinkfast.models.ragged import Ragged

TIGHT = {"rtol": 0.0, "atol": 1e-12}


def config(name: Any, **changes: Any) -> StageConfig:
    return StageConfig(**({"name": name, "tokens": 1000, "batch_tokens": 100, "lr": 1e-3} | changes))


def trained(stage: Any) -> Any:
    for p in stage.student.parameters():
        p.requires_grad_(False)
    for p in stage.parameters():
        p.requires_grad_(True)
    return stage


def inverse_silu(y: Tensor) -> Tensor:
    """x > 0 with silu(x) = y, by bisection in fp64."""
    low, high = torch.zeros_like(y), torch.full_like(y, 10.0)
    for _ in range(80):
        mid = (low + high) / 2
        low, high = (
            torch.where(torch.nn.functional.silu(mid) < y, mid, low),
            torch.where(torch.nn.functional.silu(mid) < y, high, mid),
        )
    return low


def uniform_attention(make_model: Any) -> tuple[Decoder, Decoder, Batch]:
    """A teacher whose softmax is uniform over the past, and a student with the same matrix by construction.

    Token i stands at position i and embeds to the i-th unit vector, so that C can know that position i averages over
    i + 1 tokens: C_i = 1 / (i + 1), B_j = 1, dt = 1, no decay, no skip.
    """
    teacher, student = make_model("teacher"), make_model("pure")
    for block in (*teacher.blocks, *student.blocks):
        block.input_norm.weight.fill_(1.0)
    for model in (teacher, student):
        model.embed.weight.copy_(torch.eye(40, 24))
    for block in teacher.blocks:
        block.mixer.qkv.weight[:24] = 0
        block.mixer.out.weight.zero_()  # later layers then see the same inputs
        block.mlp.down.weight.zero_()
    scale = float(teacher.blocks[0].input_norm(torch.eye(24).double())[0, 0])  # what the norm makes of a unit vector
    for _, mixer in mamba_layers(student):
        mixer.in_proj.weight.zero_()
        mixer.conv_weight.zero_()
        mixer.conv_weight[:, -1] = 1.0
        mixer.conv_bias.zero_()
        one = inverse_silu(torch.ones(()).double())
        x, b = 2 * 6, 2 * 6
        mixer.conv_bias[x : x + b : 6] = one  # B's first state of each group; the others stay at silu(0) = 0
        rows = 24 + x + b
        values = inverse_silu(1 / torch.arange(1, 25).double()) / scale
        mixer.in_proj.weight[rows : rows + 24 : 6] = values
        mixer.dt_bias.fill_(math.log(math.expm1(1.0)))
        mixer.A_log.fill_(-60.0)
        mixer.D.zero_()
    lens = torch.tensor([7, 24, 1])
    tokens = torch.cat([torch.arange(n) for n in lens.tolist()])
    return teacher, student, Batch(tokens, lens, torch.ones(len(tokens), dtype=torch.bool))


def test_orient_is_zero_where_the_matrices_are_equal(make_model: Any) -> None:
    teacher, student, batch = uniform_attention(make_model)
    ragged = Ragged(batch.lens)
    u = teacher.blocks[0].input_norm(teacher.embed(batch.tokens))
    theirs = teacher.blocks[0].mixer.matrix(u, ragged, teacher.rope(ragged.positions))
    torch.testing.assert_close(student.blocks[0].mixer.matrix(u, ragged), theirs, **TIGHT)
    stage = make_stage(config("orient"), student, teacher)
    assert stage.measure(batch) < 1e-12
    first = mamba_layers(student)[0][1]
    first.D.fill_(1.0)
    assert stage.measure(batch) > 1e-2


def test_orient_is_the_mean_matrix_error_of_the_replaced_layers(make_model: Any, batch: Batch) -> None:
    teacher, student = make_model("teacher"), make_model("hybrid", seed=1)
    ragged = Ragged(batch.lens)  # at most 30 long, so every row is drawn
    x, rope, errors = teacher.embed(batch.tokens), teacher.rope(ragged.positions), []
    for theirs, ours in zip(teacher.blocks, student.blocks, strict=True):
        u = theirs.input_norm(x)
        if isinstance(ours.mixer, Mamba):
            errors.append(matrix_error(ours.mixer.matrix(u, ragged), theirs.mixer.matrix(u, ragged, rope)))
        x = theirs(x, ragged, rope)
    assert len(errors) == 2
    stage = make_stage(config("orient"), student, teacher)
    assert stage.measure(batch) == pytest.approx(torch.stack(errors).mean().item(), abs=1e-12)


def test_orient_draws_the_same_rows_of_long_matrices_again(make_model: Any) -> None:
    teacher, student = make_model("teacher"), make_model("pure", seed=1)
    tokens = torch.randint(0, 40, (300,))
    batch = Batch(tokens, torch.tensor([200, 100]), torch.ones(300, dtype=torch.bool))
    stage = make_stage(config("orient"), student, teacher)
    first = stage.measure(batch)
    torch.rand(7)  # whatever else draws random numbers
    assert stage.measure(batch) == first

    class Whole(Orient):
        rows = 1000

    whole = Whole(config("orient"), student, teacher).measure(batch)
    assert first == pytest.approx(whole, rel=0.2)  # 48 of 200 rows of all heads estimate the whole
    assert first != whole


def test_orient_trains_what_the_matrix_is_made_of(make_model: Any, batch: Batch) -> None:
    teacher, student = make_model("teacher"), make_model("hybrid", seed=1)
    stage = trained(make_stage(config("orient"), student, teacher))
    stage.loss(batch).backward()
    got = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.any()}
    leaves = ("in_proj.weight", "conv_weight", "conv_bias", "dt_bias", "A_log", "D")
    assert got == {f"layers.{i}.mixer.{leaf}" for i in (0, 2) for leaf in leaves}
    z_and_x = student.layers[0].mixer.in_proj.weight.grad[: 24 + 12]
    assert not z_and_x.any()  # they are no part of the matrix


def silent(make_model: Any) -> tuple[Decoder, Decoder]:
    """A teacher and its hybrid, equal in everything, whose replaced mixers add nothing in either."""
    teacher = make_model("teacher")
    student = make_model("hybrid", seed=1)
    shared = {n: t for n, t in teacher.state_dict().items() if ".mixer." not in n or n.startswith("layers.1.")}
    student.load_state_dict(shared, strict=False)
    for i in (0, 2):
        teacher.blocks[i].mixer.out.weight.zero_()
        student.blocks[i].mixer.out.weight.zero_()
    return teacher, student


def test_align_is_zero_where_the_layers_agree(make_model: Any, batch: Batch) -> None:
    teacher, student = silent(make_model)
    stage = make_stage(config("align"), student, teacher)
    assert isinstance(stage, Align)
    mixer, block = stage.terms(batch)
    assert mixer.shape == block.shape == (2,)  # the kept layer has no term
    # Squares of fp64 roundings: the block's term is of fewer rows than the teacher's, which some CPUs add up otherwise.
    assert stage.loss(batch).item() < 1e-28
    assert stage.measure(batch) == 0
    # And the whole models then agree too, which imitate sees.
    imitate = make_stage(config("imitate"), student, teacher)
    assert imitate.loss(batch).item() == pytest.approx(0, abs=1e-12)
    assert imitate.measure(batch) == 1.0


class AlignAll(Align):
    """The block's term on every token."""

    share = 1


def test_align_estimates_the_blocks_term_on_a_fixed_share_of_the_tokens(make_model: Any) -> None:
    teacher, student = make_model("teacher"), make_model("hybrid", seed=1)
    tokens = torch.randint(0, 40, (400,))
    batch = Batch(tokens, torch.tensor([150, 250]), torch.ones(400, dtype=torch.bool))
    stage = make_stage(config("align"), student, teacher)
    assert isinstance(stage, Align)
    mixer, block = stage.terms(batch)
    torch.rand(7)  # whatever else draws random numbers
    again = stage.terms(batch)
    whole = AlignAll(config("align"), student, teacher).terms(batch)
    assert torch.equal(again[1], block)
    assert torch.equal(whole[0], mixer)
    # 100 of 400 tokens: the estimate of a mean of heavy-tailed ratios is good to some tens of per cent.
    torch.testing.assert_close(block, whole[1], rtol=0.3, atol=0)
    assert not torch.equal(block, whole[1])


def test_align_feeds_every_block_the_teachers_hidden_state(make_model: Any, batch: Batch) -> None:
    teacher, student = make_model("teacher"), make_model("hybrid", seed=1)
    stage = AlignAll(config("align"), student, teacher)
    before = stage.terms(batch)
    student.blocks[0].mixer.out.weight.mul_(10)
    student.embed.weight.zero_()
    after = stage.terms(batch)
    for was, now in zip(before, after, strict=True):
        assert was[0] != now[0]
        assert was[1] == now[1]
    ragged = Ragged(batch.lens)
    x, rope = teacher.embed(batch.tokens), teacher.rope(ragged.positions)
    theirs, ours = teacher.blocks[0], student.blocks[0]
    mixed, own = theirs.mix(theirs.input_norm(x), ragged, rope), ours.mix(ours.input_norm(x), ragged, rope)
    torch.testing.assert_close(after[0][0], relative_error(own, mixed), **TIGHT)
    want = relative_error(ours.feed_forward(x + own) - x, theirs(x, ragged, rope) - x)
    torch.testing.assert_close(after[1][0], want, **TIGHT)
    assert stage.loss(batch).item() == pytest.approx(after[0].mean().item() + after[1].mean().item())


def log_probs(model: Decoder, batch: Batch) -> Tensor:
    return model.logits(model(batch.tokens, Ragged(batch.lens)))[batch.loss_mask].log_softmax(-1)


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_imitate_is_the_divergence_over_answer_tokens(kind: Any, make_model: Any, batch: Batch) -> None:
    teacher, student = make_model("teacher"), make_model("pure", seed=1)
    lq, lp = log_probs(teacher, batch), log_probs(student, batch)
    want = (lq.exp() * (lq - lp) if kind == "forward" else lp.exp() * (lp - lq)).sum(-1).mean()
    stage = make_stage(config("imitate", loss=kind), student, teacher)
    assert stage.loss(batch).item() == pytest.approx(want.item(), abs=1e-12)
    assert stage.measure(batch) == pytest.approx((lp.argmax(-1) == lq.argmax(-1)).double().mean().item())


def test_imitate_can_draw_the_residual_stream_along(make_model: Any, batch: Batch) -> None:
    teacher, student = make_model("teacher"), make_model("hybrid", seed=1)
    ragged = Ragged(batch.lens)
    streams = zip(student.trace(batch.tokens, ragged)[1], teacher.trace(batch.tokens, ragged)[1], strict=True)
    extra = torch.stack([relative_error(a, b) for a, b in streams])
    assert extra.shape == (3,)
    plain = make_stage(config("imitate"), student, teacher).loss(batch)
    both = make_stage(config("imitate", hidden=0.5), student, teacher).loss(batch)
    torch.testing.assert_close(both, plain + 0.5 * extra.mean(), **TIGHT)


@pytest.mark.parametrize("name", ["sft", "pretrain"])
def test_fine_tuning_predicts_the_next_token_of_the_same_example(name: str, make_model: Any, batch: Batch) -> None:
    student = make_model("hybrid")
    ends = batch.lens.cumsum(0) - 1
    assert not batch.loss_mask[ends].any()
    lp, targets = log_probs(student, batch), batch.tokens[batch.loss_mask.nonzero()[:, 0] + 1]
    stage = make_stage(config(name), student, None)
    assert stage.loss(batch).item() == pytest.approx(-lp.gather(1, targets[:, None]).mean().item(), abs=1e-12)
    assert stage.measure(batch) == pytest.approx((lp.argmax(-1) == targets).double().mean().item())


@pytest.mark.parametrize("name", ["imitate", "sft"])
def test_what_follows_no_counted_token_does_not_count(name: str, make_model: Any) -> None:
    # The last example's mask ends two tokens early: what its tail predicts may be anything.
    teacher, student = make_model("teacher"), make_model("pure", seed=1)
    tokens, lens = torch.randint(0, 40, (20,)), torch.tensor([8, 12])
    mask = torch.ones(20, dtype=torch.bool)
    mask[[0, 7, 17, 18, 19]] = False
    stage = make_stage(config(name), student, teacher)
    before = stage.loss(Batch(tokens, lens, mask)).item()
    changed = tokens.clone()
    changed[18:] = (changed[18:] + 1) % 40
    if name == "sft":
        changed[18] = tokens[18]  # position 17 is not counted, so neither is what it predicts; 16 predicts 17
    assert stage.loss(Batch(changed, lens, mask)).item() == before
    counted = mask.clone()
    counted[18] = True
    assert stage.loss(Batch(tokens, lens, counted)).item() != before


@pytest.mark.parametrize("name", ["orient", "align", "imitate", "sft"])
def test_bf16_autocast_stays_close_to_fp32(name: str, make_model: Any, batch: Batch) -> None:
    teacher, student = make_model("teacher", dtype=torch.float32), make_model("hybrid", 1, torch.float32)
    stage = trained(make_stage(config(name), student, teacher))
    want = stage.loss(batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = stage.loss(batch)
    assert loss.item() == pytest.approx(want.item(), rel=0.05)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


@pytest.mark.parametrize("name", ["orient", "align", "imitate"])
def test_the_teacher_gets_no_gradient(name: str, make_model: Any, batch: Batch) -> None:
    teacher, student = make_model("teacher").requires_grad_(True), make_model("hybrid", seed=1)
    trained(make_stage(config(name), student, teacher)).loss(batch).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())


@pytest.mark.parametrize("name", ["align", "imitate", "sft"])
def test_train_mixers_leaves_everything_else_alone(name: str, make_model: Any) -> None:
    teacher, student = make_model("teacher"), make_model("hybrid")
    stage = make_stage(config(name, train="mixers"), student, teacher)
    names = {id(p): n for n, p in student.named_parameters()}
    trained_names = {names[id(p)] for p in stage.parameters()}
    assert trained_names == {n for n in names.values() if n.startswith(("layers.0.mixer.", "layers.2.mixer."))}
    everything = make_stage(config(name), student, teacher).parameters()
    assert len(everything) == len(names)


def test_a_teacher_has_no_mixers_to_train(make_model: Any) -> None:
    with pytest.raises(ConfigError, match="no mixer"):
        make_stage(config("pretrain", train="mixers"), make_model("teacher"), None).parameters()


@pytest.mark.parametrize("name", ["orient", "align", "imitate"])
def test_distillation_needs_a_teacher(name: str, make_model: Any) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' needs a teacher"):
        make_stage(config(name), make_model("pure"), None)


def test_figures_say_which_way_is_better(make_model: Any) -> None:
    teacher, student = make_model("teacher"), make_model("pure")
    better = {
        n: make_stage(config(n), student, teacher).higher_is_better for n in ("orient", "align", "imitate", "sft")
    }
    assert better == {"orient": False, "align": False, "imitate": True, "sft": True}
    assert isinstance(make_stage(config("imitate"), student, teacher), Imitate)
