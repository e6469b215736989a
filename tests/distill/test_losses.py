"""The blockwise losses against the plain formula over full logits.

Tolerance: fp64 sums of order 1; blocks change the order of sums only, so 1e-12 is rounding and nothing else.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from thinkfast.distill.losses import KINDS, divergence, matrix_error, relative_error
from thinkfast.errors import ConfigError

TIGHT = {"rtol": 0.0, "atol": 1e-12}
M, D, E, V = 37, 16, 24, 101
# One block, blocks that divide, blocks that do not, blocks of one, blocks larger than everything.
BLOCKS = [(37, 101), (10, 30), (36, 100), (5, 7), (64, 13), (3, 1), (1000, 1000)]


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor]:
    hidden = torch.randn(M, D, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, dtype=dtype, requires_grad=True)
    teacher = torch.randn(M, E, dtype=dtype), 0.3 * torch.randn(V, E, dtype=dtype)
    return hidden, weight, teacher, torch.randint(0, V, (M,))


def plain(kind: str, hidden: Tensor, weight: Tensor, teacher: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    lp, lq = (hidden @ weight.T).log_softmax(-1), (teacher[0] @ teacher[1].T).log_softmax(-1)
    if kind == "ce":
        return -lp.gather(1, targets[:, None]).mean()
    lm = torch.logaddexp(lp, lq) - math.log(2)
    terms = {
        "forward": lq.exp() * (lq - lp),
        "reverse": lp.exp() * (lp - lq),
        "jsd": 0.5 * lp.exp() * (lp - lm) + 0.5 * lq.exp() * (lq - lm),
    }
    return terms[kind].sum(-1).mean()


def given(kind: str, teacher: tuple[Tensor, Tensor], targets: Tensor) -> dict[str, Any]:
    return {"targets": targets} if kind == "ce" else {"teacher": teacher}


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_are_those_of_the_formula(kind: str, blocks: tuple[int, int]) -> None:
    hidden, weight, teacher, targets = inputs()
    want = plain(kind, hidden, weight, teacher, targets)
    found = divergence(
        kind, hidden, weight, **given(kind, teacher, targets), token_block=blocks[0], vocab_block=blocks[1]
    )
    torch.testing.assert_close(found, want, **TIGHT)
    for ours, theirs in zip(
        torch.autograd.grad(3 * found, (hidden, weight)), torch.autograd.grad(3 * want, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, **TIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    hidden, weight = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 5))
    teacher = torch.randn(4, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    rest = given(kind, teacher, torch.tensor([0, 4, 2, 2]))
    assert torch.autograd.gradcheck(
        lambda h, w: divergence(kind, h, w, **rest, token_block=3, vocab_block=2), (hidden, weight)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_side_gets_no_gradient(kind: str) -> None:
    hidden, weight, teacher, targets = inputs()
    rest = given(kind, teacher, targets)
    divergence(kind, hidden, weight.detach(), **rest).backward()
    divergence(kind, hidden.detach(), weight, **rest).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    again = torch.autograd.grad(divergence(kind, hidden, weight, **rest), (hidden, weight))
    torch.testing.assert_close(hidden.grad, again[0], **TIGHT)
    torch.testing.assert_close(weight.grad, again[1], **TIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_full_logits_are_never_held(kind: str) -> None:
    hidden, weight, teacher, targets = inputs()

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else (out,):
                self.size = max(self.size, t.numel() if isinstance(t, Tensor) else 0)
            return out

    with Largest() as seen:
        divergence(kind, hidden, weight, **given(kind, teacher, targets), token_block=8, vocab_block=25).backward()
    # Weights and their gradient are V x E at most; full logits would be M x V.
    assert seen.size <= V * E < M * V


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_equal_distributions_are_at_no_distance(kind: str) -> None:
    hidden, weight, _, _ = inputs()
    same = divergence(kind, hidden, weight, teacher=(hidden.detach(), weight.detach()), vocab_block=13)
    torch.testing.assert_close(same, torch.zeros_like(same), **TIGHT)
    for grad in torch.autograd.grad(same, (hidden, weight)):
        torch.testing.assert_close(grad, torch.zeros_like(grad), **TIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_stay_finite(kind: str) -> None:
    hidden, weight, teacher, targets = inputs(torch.float32)
    hidden = (1e4 * hidden).detach().requires_grad_()
    loss = divergence(kind, hidden, weight, **given(kind, (1e4 * teacher[0], teacher[1]), targets), vocab_block=30)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (hidden, weight)))
    if kind == "jsd":
        assert loss.item() <= math.log(2) + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_summed_in_fp32(kind: str) -> None:
    hidden, weight, teacher, targets = inputs(torch.bfloat16)
    exact = [t.detach().double() for t in (hidden, weight, *teacher)]
    want = plain(kind, exact[0], exact[1], (exact[2], exact[3]), targets)
    loss = divergence(kind, hidden, weight, **given(kind, teacher, targets), vocab_block=30)
    assert loss.dtype == torch.float32
    # Logits are formed in bf16 (2^-9 each, of order 4); averages over 37 tokens: 1 % is generous.
    assert loss.item() == pytest.approx(want.item(), rel=1e-2)
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(loss, (hidden, weight)))


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens_cost_nothing(kind: str) -> None:
    hidden, weight, teacher, targets = inputs()
    loss = divergence(kind, hidden[:0], weight, **given(kind, (teacher[0][:0], teacher[1]), targets[:0]))
    assert loss.item() == 0
    (grad,) = torch.autograd.grad(loss, hidden)
    assert not grad.any()


def test_a_mean_over_tokens_is_a_mean_over_tokens() -> None:
    hidden, weight, teacher, _ = inputs()
    each = [
        divergence("forward", hidden[i : i + 1], weight, teacher=(teacher[0][i : i + 1], teacher[1])) for i in range(M)
    ]
    torch.testing.assert_close(
        divergence("forward", hidden, weight, teacher=teacher), torch.stack(each).mean(), **TIGHT
    )


@pytest.mark.parametrize(
    ("kind", "rest", "named"),
    [
        ("kl", {}, "unknown loss 'kl'"),
        ("forward", {"targets": torch.zeros(M, dtype=torch.long)}, "'forward' needs teacher"),
        ("jsd", {}, "'jsd' needs teacher"),
        ("ce", {"teacher": (torch.zeros(M, E), torch.zeros(V, E))}, "'ce' needs targets"),
    ],
)
def test_what_is_missing_is_named(kind: str, rest: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        divergence(kind, torch.zeros(M, D), torch.zeros(V, D), **rest)


def test_relative_error() -> None:
    t = torch.randn(4, 5)
    assert relative_error(t, t).item() == 0
    assert relative_error(torch.zeros_like(t), t).item() == pytest.approx(1)
    assert relative_error(3 * t, t).item() == pytest.approx(4)
    assert relative_error(t * 0, t * 0).item() == 0


def test_matrix_error_compares_directions_of_the_rows_that_count() -> None:
    t = torch.rand(2, 3, 4, 5) + 0.1
    assert matrix_error(7 * t, t).item() == pytest.approx(0, abs=1e-10)
    assert matrix_error(-t, t).item() == pytest.approx(4)
    eye = torch.eye(4, 5).expand(2, 3, 4, 5)
    assert matrix_error(eye, eye.roll(1, -1)).item() == pytest.approx(2)
    ended = t.clone()
    ended[1, :, 2:] = 0
    worse = t.clone()
    worse[1, :, 2:] *= -1
    assert matrix_error(worse, ended).item() == pytest.approx(0, abs=1e-10)


def test_matrix_error_has_a_gradient_at_a_zero_student() -> None:
    student = torch.zeros(1, 1, 3, 3, requires_grad=True)
    matrix_error(student, torch.eye(3).expand(1, 1, 3, 3)).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
