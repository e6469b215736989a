"""The sampler: one token a row from its logits, as a handful of batched operations.

A token is drawn by inverting the cumulative distribution at one counter-based uniform. Rows that ask for no filter
pay for none: only rows with top-k, top-p or min-p go through the sorted path, and each row's token depends on its
own logits, parameters and counter, never on which rows stand beside it.

Legend: B rows, R rows with filters, V vocabulary, M candidates.

Usage: ``draw(logits, params, mix_of(params))``.
Source: nucleus sampling arXiv 1904.09751; min-p arXiv 2407.01082.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from thinkfast.engine.rng import uniform

# Sorting a whole vocabulary costs ten times more than finding its head. A row whose kept set is not proven to lie
# in the head is sorted in full.
CANDIDATES = 64


@dataclass(frozen=True, slots=True)
class RowParams:
    """What the sampler knows of each row, all [B]: key and drawn (int64, the random counter), inverse temperature
    (fp32, 1 for greedy rows), top_k (int64, 0 is off), top_p, min_p (fp32), greedy (bool).
    """

    key: Tensor
    drawn: Tensor
    inverse_temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    greedy: Tensor

    def select(self, rows: Tensor) -> RowParams:
        """The parameters of ``rows`` [R]."""
        fields = (self.key, self.drawn, self.inverse_temperature, self.top_k, self.top_p, self.min_p, self.greedy)
        return RowParams(*(field[rows] for field in fields))


@dataclass(frozen=True, slots=True)
class Mix:
    """Which paths a batch needs; it changes only when rows come or go. truncated: rows with filters [R], or None."""

    greedy: bool
    sampled: bool
    truncated: Tensor | None


@dataclass(frozen=True, slots=True)
class Draw:
    """tokens [B] int64; logprobs [B] fp32, under the model at temperature 1; finite [B], False where the row's logits
    hold a NaN or an infinity: such a row's token means nothing, and no other row is touched by it. certainty [B] fp32:
    the divergence KL(uniform, model) of the whole distribution, in nats, also at temperature 1 (arXiv 2502.18581).
    """

    tokens: Tensor
    logprobs: Tensor
    finite: Tensor
    certainty: Tensor


def mix_of(params: RowParams) -> Mix:
    """The paths that ``params`` needs (reads values back from the device)."""
    filters = (params.top_k > 0) | (params.top_p < 1) | (params.min_p > 0)
    rows = torch.nonzero(filters & ~params.greedy).flatten()
    greedy = int(params.greedy.sum())
    return Mix(greedy > 0, greedy < params.greedy.shape[0], rows if rows.numel() else None)


def draw(logits: Tensor, params: RowParams, mix: Mix) -> Draw:
    """Sample one token a row from logits [B, V]."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    # One sum finds every NaN and infinity: log_softmax turns each into a NaN or -inf somewhere in its row.
    whole = logprobs.sum(-1)
    finite = whole.isfinite()
    tokens = _sample(logprobs, params, mix) if mix.sampled else logprobs.argmax(-1)
    if mix.greedy and mix.sampled:
        tokens = torch.where(params.greedy, logprobs.argmax(-1), tokens)
    chosen = logprobs.gather(1, tokens[:, None]).squeeze(1)
    # KL(u, p) = -log V - mean log p: the sum over the vocabulary is there already, so this costs one pass over B.
    size = logits.shape[-1]
    return Draw(tokens, chosen, finite, whole.mul(-1 / size).sub_(math.log(size)))


def _sample(logprobs: Tensor, params: RowParams, mix: Mix) -> Tensor:
    probs = torch.softmax(logprobs * params.inverse_temperature[:, None], dim=-1)
    u = uniform(params.key, params.drawn)[:, None]
    tokens = _invert(probs, u)
    if (rows := mix.truncated) is not None:
        tokens[rows] = _sample_truncated(probs[rows], u[rows], params.select(rows))
    return tokens


def _invert(probs: Tensor, u: Tensor) -> Tensor:
    """Index [B] at which the cumulative sum of unnormalised probs [B, V] first exceeds u [B, 1] of its total."""
    total = probs.cumsum(-1)
    # right=True: an index of zero probability repeats its neighbour's sum and can never be the first above u.
    index = torch.searchsorted(total, u * total[:, -1:], right=True).squeeze(1)
    return index.clamp_(max=probs.shape[1] - 1)  # only rows of NaN reach the bound


def _sample_truncated(probs: Tensor, u: Tensor, params: RowParams) -> Tensor:
    """Tokens [R] for rows with filters, from probs [R, V] at the rows' temperatures."""
    size = min(CANDIDATES, probs.shape[1])
    head, index = torch.topk(probs, size, dim=-1)
    tokens = _from_sorted(head, index, u, params)
    # top_p = 1 is off, and a rounded sum that reaches 1 must not pass for a nucleus that ends in the head.
    nucleus = (params.top_p < 1) & (head.sum(-1) >= params.top_p)
    nucleus |= head[:, -1] < params.min_p * head[:, 0]
    complete = torch.where(params.top_k > 0, params.top_k <= size, nucleus)
    rest = torch.nonzero(~complete).flatten()
    if size < probs.shape[1] and rest.numel():
        ranked, index = torch.sort(probs[rest], dim=-1, descending=True, stable=True)
        tokens[rest] = _from_sorted(ranked, index, u[rest], params.select(rest))
    return tokens


def _from_sorted(ranked: Tensor, index: Tensor, u: Tensor, params: RowParams) -> Tensor:
    """Tokens from descending probabilities ``ranked`` [R, M] of the tokens ``index`` [R, M]."""
    ranks = torch.arange(ranked.shape[1], device=ranked.device)
    k = torch.where(params.top_k > 0, params.top_k, ranked.shape[1])[:, None]
    kept = ranked.masked_fill(ranks >= k, 0.0)
    before = kept.cumsum(-1) - kept
    # top_p counts the mass that top_k has left; without top_k that is one, whatever part of it M candidates hold.
    mass = torch.where(params.top_k > 0, kept.sum(-1), 1.0)
    kept = kept.masked_fill((before >= (params.top_p * mass)[:, None]) & (params.top_p < 1)[:, None], 0.0)
    kept = kept.masked_fill(ranked < (params.min_p * ranked[:, 0])[:, None], 0.0)
    return index.gather(1, _invert(kept, u)[:, None]).squeeze(1)
