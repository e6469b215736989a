"""Divergences between teacher and student that never hold the full logits.

Legend: M masked tokens, D model width, V vocabulary, T tokens a block, W vocabulary rows a block.

Hidden states meet output embeddings block by block over tokens *and* vocabulary; the gradient is formed in the same
sweep, so memory is one [T, W] block whatever V is. With p the student's distribution and q the teacher's, the
gradient at the student's logits is

    forward  KL(q || p):   p - q
    reverse  KL(p || q):   p (d - E_p[d]),       d = log p - log q      (arXiv 2306.08543)
    jsd      JSD(p, q):    p (d - E_p[d]) / 2,   d = log p - log m,  m = (p + q) / 2
    ce       -log p[y]:    p - onehot(y)

Usage: ``divergence("forward", hs, ws, teacher=(ht, wt))`` or ``divergence("ce", hs, ws, targets=y)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from thinkfast.errors import ConfigError
from thinkfast.models.precision import at_least_fp32, wide

KINDS = ("forward", "reverse", "jsd", "ce")
TOKEN_BLOCK, VOCAB_BLOCK = 4096, 16384


def divergence(
    kind: str,
    hidden: Tensor,
    weight: Tensor,
    *,
    teacher: tuple[Tensor, Tensor] | None = None,
    targets: Tensor | None = None,
    token_block: int = TOKEN_BLOCK,
    vocab_block: int = VOCAB_BLOCK,
) -> Tensor:
    """Mean divergence in nats over M tokens; differentiable in ``hidden`` [M, D] and ``weight`` [V, D].

    teacher: (hidden [M, D'], output embedding [V, D']) for KL and JSD; targets [M] for ``ce``.
    Mask before calling: hand over only the tokens that count. Sums run in at least fp32, as does the result.
    Errors: ConfigError for an unknown kind, or one without the teacher or targets that it needs.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown loss {kind!r}", remedy=f"use one of {', '.join(KINDS)}")
    if (targets if kind == "ce" else teacher) is None:
        need = "targets" if kind == "ce" else "teacher"
        raise ConfigError(f"loss {kind!r} needs {need}", remedy=f"pass {need}=...")
    if hidden.shape[0] == 0:
        return at_least_fp32(hidden.sum() * 0.0)
    th, tw = teacher if teacher is not None else (None, None)
    apply = cast(Callable[..., Tensor], _Divergence.apply)
    return apply(hidden, weight, th, tw, targets, kind, token_block, vocab_block)


def _blocks(size: int, block: int) -> Iterator[slice]:
    return (slice(i, min(i + block, size)) for i in range(0, size, block))


class _Rows:
    """Log-probabilities of one block of tokens, a vocabulary block at a time."""

    def __init__(self, hidden: Tensor, weight: Tensor, vocab_block: int) -> None:
        self.hidden, self.weight = hidden, weight
        # One block means one product: keep it instead of forming it again for every pass.
        self.kept = at_least_fp32(hidden @ weight.T) if weight.shape[0] <= vocab_block else None
        lse = torch.full((hidden.shape[0],), -math.inf, dtype=wide(hidden.dtype), device=hidden.device)
        for v in _blocks(weight.shape[0], vocab_block):
            lse = torch.logaddexp(lse, self._logits(v).logsumexp(-1))
        self.lse = lse

    def _logits(self, v: slice) -> Tensor:
        return self.kept if self.kept is not None else at_least_fp32(self.hidden @ self.weight[v].T)

    def logp(self, v: slice) -> Tensor:
        return self._logits(v) - self.lse[:, None]


def _gap(kind: str, lp: Tensor, lq: Tensor) -> Tensor:
    """d = log p - log q, or log p - log m for JSD."""
    return lp - (lq if kind == "reverse" else torch.logaddexp(lp, lq) - math.log(2))


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        t_hidden: Tensor | None,
        t_weight: Tensor | None,
        targets: Tensor | None,
        kind: str,
        token_block: int,
        vocab_block: int,
    ) -> Tensor:
        count, vocab = hidden.shape[0], weight.shape[0]
        grad_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=wide(weight.dtype)) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for rows in _blocks(count, token_block):
            p = _Rows(hidden[rows], weight, vocab_block)
            q = None if t_hidden is None or t_weight is None else _Rows(t_hidden[rows], t_weight, vocab_block)
            blocks = list(_blocks(vocab, vocab_block))
            own = torch.zeros_like(p.lse)  # E_p[d], per token
            if kind in ("reverse", "jsd") and q is not None:
                for v in blocks:
                    lp, lq = p.logp(v), q.logp(v)
                    own += (lp.exp() * _gap(kind, lp, lq)).sum(-1)
                    if kind == "jsd":
                        total += (lq.exp() * (lq - torch.logaddexp(lp, lq) + math.log(2))).sum().double() / 2
                total += own.sum().double() / (2 if kind == "jsd" else 1)
            for v in blocks:
                lp = p.logp(v)
                if kind == "ce" and targets is not None:
                    local = targets[rows] - v.start
                    here = (local >= 0) & (local < v.stop - v.start)
                    index = local.clamp(0, v.stop - v.start - 1)[:, None]
                    total -= lp.gather(1, index)[:, 0][here].sum().double()
                    grad = lp.exp().scatter_add(1, index, -here.to(lp.dtype)[:, None])
                elif q is not None:
                    lq = q.logp(v)
                    if kind == "forward":
                        total += (lq.exp() * (lq - lp)).sum().double()
                        grad = lp.exp() - lq.exp()
                    else:
                        grad = lp.exp() * (_gap(kind, lp, lq) - own[:, None]) / (2 if kind == "jsd" else 1)
                grad = (grad / count).to(hidden.dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] += grad @ weight[v]
                if grad_weight is not None:
                    grad_weight[v] += grad.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return (total / count).to(wide(hidden.dtype))

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        g = upstream[0]
        return (
            None if grad_hidden is None else grad_hidden * g,
            None if grad_weight is None else grad_weight * g,
            *(None,) * 6,
        )


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """||student - teacher||^2 / ||teacher||^2 over all elements: 0 is equal, 1 is as bad as zero output."""
    return (student - teacher).square().sum() / teacher.square().sum().clamp_min(1e-12)


def matrix_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared Frobenius distance of unit rows [n, H, R, L]: 0 is equal up to each row's length, 2 orthogonal.

    Rows that are zero in the teacher (past a sequence's end) do not count. Source: MOHAWK's first stage
    (arXiv 2408.10189, section 4.1), with rows scaled to unit length.
    """
    counted = teacher.square().sum(-1) > 0
    unit_s = student / student.square().sum(-1, keepdim=True).clamp_min(1e-12).sqrt()
    unit_t = teacher / teacher.square().sum(-1, keepdim=True).clamp_min(1e-12).sqrt()
    return (unit_s - unit_t).square().sum(-1)[counted].mean()
