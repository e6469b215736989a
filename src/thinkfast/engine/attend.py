"""Decode attention in place over pages: no gather of KV, no padding, the shared prompt read once per group.

Each row's context is a set of spans: its tail (the newest, partly filled page), its own full pages, and the pages of
the prompt it shares with other samples. Every page in use is multiplied with the queries of its owner where it lies;
what comes out, one partial softmax per span, is merged per row by the spans' peaks. Only these results are gathered,
and they are 2 * W times smaller than the KV that made them. Measured against the alternatives in docs/engine-cpu.md.

Legend: B rows, H heads, K key-value heads, G = H / K, P head dim, W tokens a page, M lanes (most rows of one prompt),
S spans of the row that has most, U units (one softmax over one page for one query each).

Usage: ``LayerAttention(pools, step).attend(q, k, v, scale)``.
Source: split-KV decoding, arXiv 2311.01282; shared prefixes, arXiv 2402.05099.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thinkfast.engine.pages import Ints, PageTable


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes that do not change: K, G, P, W, and where the tensors live."""

    kv_heads: int
    group: int
    head_dim: int
    page: int
    dtype: torch.dtype
    device: torch.device

    @property
    def heads(self) -> int:
        """H."""
        return self.kv_heads * self.group


@dataclass(frozen=True, slots=True)
class Plan:
    """Who attends to what until rows or pages change; index tensors int64.

    owner [owned] is the row of each own page. lanes [shared * K * M] picks from q, seen as [B * K, G * P], the queries
    that share each prompt page. shared_bias [shared, 1, W] hides the empty end of a prompt's last page. merge
    [S * B * H] picks, for each query, its units; unused places point at a unit that weighs nothing. Of the tails only
    the first ``tail`` tokens are read: rows that started together fill theirs together.
    """

    rows: int
    tail: int
    owned: int
    shared: int
    width: int
    spans: int
    owner: Tensor
    lanes: Tensor
    shared_bias: Tensor
    merge: Tensor


def make_plan(shape: Shape, tail: int, own: PageTable, shared: PageTable, prompt_of: Ints, filled: Ints) -> Plan:
    """Index tensors for the rows of ``prompt_of`` [B], the prompt a row shares or -1; ``filled`` [shared pages] are the
    tokens in each prompt page. Prompt pages are read last to first, as they lie in the pool.
    """
    kv, group, heads, rows = shape.kv_heads, shape.group, shape.heads, len(prompt_of)
    sharing = np.flatnonzero(prompt_of >= 0)
    prompts = prompt_of[sharing]
    order = np.argsort(prompts, kind="stable")
    lane = np.zeros(rows, dtype=np.int64)
    lane[sharing[order]] = np.arange(len(sharing)) - np.searchsorted(prompts[order], prompts[order])
    width = int(lane.max(initial=-1)) + 1 if shared.used else 0
    readers = np.zeros((len(shared.count), max(width, 1)), dtype=np.int64)
    readers[prompts, lane[sharing]] = sharing
    page_readers = readers[shared.owner[: shared.used][::-1]][:, :width]
    lanes = page_readers[:, None, :] * kv + np.arange(kv)[None, :, None]

    # Units in memory: one block that weighs nothing, then tails, own pages, prompt pages.
    first_own = heads + rows * heads
    first_shared = first_own + own.used * heads
    own_count, shared_count = own.count[:rows], np.where(prompt_of >= 0, shared.count[prompt_of], 0)
    spans = 1 + int((own_count + shared_count).max(initial=0))
    base = np.zeros((rows, spans), dtype=np.int64)
    stride = np.full((rows, spans), group, dtype=np.int64)
    base[:, 0] = heads + np.arange(rows) * heads
    place = np.arange(1, spans)[None, :] - 1
    is_own = place < own_count[:, None]
    base[:, 1:][is_own] = first_own + own.table[:rows, : spans - 1][is_own[:, : own.table.shape[1]]] * heads
    is_shared = ~is_own & (place < (own_count + shared_count)[:, None])
    row, span = np.nonzero(is_shared)
    page = shared.used - 1 - shared.table[prompt_of[row], span - own_count[row]]
    base[:, 1:][is_shared] = first_shared + (page * kv * width + lane[row]) * group
    stride[:, 1:][is_shared] = width * group
    base, stride = base.T[:, :, None, None], stride.T[:, :, None, None]
    merge = base + np.arange(kv)[:, None] * stride + np.arange(group)

    empty = np.arange(shape.page) >= filled[: shared.used][::-1, None]
    bias = np.where(empty, -np.inf, 0.0)[:, None, :]
    to = shape.device
    return Plan(
        rows,
        tail,
        own.used,
        shared.used if width else 0,
        width,
        spans,
        torch.from_numpy(own.owner[: own.used].copy()).to(to),
        torch.from_numpy(lanes.reshape(-1)).to(to),
        torch.from_numpy(bias).to(to, shape.dtype),
        torch.from_numpy(merge.reshape(-1)).to(to),
    )


class Workspace:
    """Scores and partial results of one layer, cut to a plan; layers run one after another and share it."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._memory: dict[str, Tensor] = {}

    def _take(self, name: str, *size: int) -> Tensor:
        """A contiguous view of ``size`` on memory that only grows: fresh pages are slow on a CPU."""
        want = int(np.prod(size))
        if (held := self._memory.get(name)) is None or held.numel() < want:
            held = torch.empty(want * 5 // 4, dtype=self.shape.dtype, device=self.shape.device)
            self._memory[name] = held
        return held[:want].view(size)

    def fit(self, plan: Plan) -> None:
        """Cut the buffers for ``plan``."""
        kv, group, heads, p, w = (getattr(self.shape, n) for n in ("kv_heads", "group", "heads", "head_dim", "page"))
        rows, width = plan.rows, plan.width
        tails, owned = rows * heads, plan.owned * heads
        paged = owned + plan.shared * kv * width * group
        self.scores = self._take("scores", tails * plan.tail + paged * w)
        self.tail_scores = self.scores[: tails * plan.tail].view(tails, plan.tail)
        self.page_scores = self.scores[tails * plan.tail :].view(paged, w)
        self.own_scores = self.page_scores[:owned].view(plan.owned * kv, group, w)
        self.shared_scores = self.page_scores[owned:].view(plan.shared * kv, width * group, w)
        self.peak, self.total = (self._take(n, heads + tails + paged) for n in ("peak", "total"))
        out = self._take("out", heads + tails + paged, p)
        # The first H units weigh nothing.
        self.peak[:heads], self.total[:heads], out[:heads] = float("-inf"), 1, 0
        cut = heads + tails
        self.tail_peak, self.page_peak = self.peak[heads:cut], self.peak[cut:]
        self.tail_total, self.page_total = self.total[heads:cut], self.total[cut:]
        self.out = out
        self.tail_out = out[heads:cut].view(rows * kv, group, p)
        self.own_out = out[cut : cut + owned].view(plan.owned * kv, group, p)
        self.shared_out = out[cut + owned :].view(plan.shared * kv, width * group, p)
        self.q = self._take("q", rows, heads, p)
        self.q_own = self._take("q_own", plan.owned, heads * p)
        self.q_shared = self._take("q_shared", plan.shared * kv * width, group * p)
        self.weights, self.totals = (self._take(n, plan.spans, tails) for n in ("weights", "totals"))
        self.picked = self._take("picked", plan.spans, tails, p)
        self.merged = self._take("merged", tails, p)


@dataclass(slots=True)
class StepState:
    """What all layers of one step share: the plan, the buffers, where new tokens go [B * K], and the tails' mask."""

    plan: Plan
    work: Workspace
    append: Tensor
    tail_bias: Tensor


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """One attention layer's cache (models.attention.AttentionCache).

    k pool [pages, K, P, W], v pool [pages, K, W, P], tails [rows, K, W, P]. Keys of full pages lie transposed, which
    makes their product a quarter faster; a tail does not, so that appending a token writes whole cache lines.
    """

    k: Tensor
    v: Tensor
    tail_k: Tensor
    tail_v: Tensor
    step: StepState

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Append k, v [B, K, P] to the rows' tails and attend with q [B, H, P]; returns [B, H, P], valid until
        the next call.
        """
        plan, work = self.step.plan, self.step.work
        _, kv, _, p = self.tail_k.shape
        rows, owned, shared = plan.rows, plan.owned, plan.shared
        self.tail_k.view(-1, p).index_copy_(0, self.step.append, k.reshape(-1, p))
        self.tail_v.view(-1, p).index_copy_(0, self.step.append, v.reshape(-1, p))
        q = torch.mul(q, scale, out=work.q)

        tail_k, tail_v = (t[:rows].view(rows * kv, -1, p)[:, : plan.tail] for t in (self.tail_k, self.tail_v))
        tail_scores = work.tail_scores.view(rows * kv, -1, plan.tail)
        torch.bmm(q.view(rows * kv, -1, p), tail_k.transpose(1, 2), out=tail_scores)
        tail_scores.view(rows, -1, plan.tail).add_(self.step.tail_bias)
        if owned:
            torch.index_select(q.view(rows, -1), 0, plan.owner, out=work.q_own)
            torch.bmm(work.q_own.view(owned * kv, -1, p), self.k[:owned].flatten(0, 1), out=work.own_scores)
        if shared:
            torch.index_select(q.view(rows * kv, -1), 0, plan.lanes, out=work.q_shared)
            torch.bmm(work.q_shared.view(shared * kv, -1, p), self.k[-shared:].flatten(0, 1), out=work.shared_scores)
            work.shared_scores.view(shared, -1, self.k.shape[-1]).add_(plan.shared_bias)

        # Softmax by hand: torch's is made for long rows and takes three times as long on these.
        torch.amax(work.tail_scores, -1, out=work.tail_peak)
        work.tail_scores.sub_(work.tail_peak[:, None])
        if owned or shared:
            torch.amax(work.page_scores, -1, out=work.page_peak)
            work.page_scores.sub_(work.page_peak[:, None])
        work.scores.exp_()
        torch.sum(work.tail_scores, -1, out=work.tail_total)
        torch.bmm(tail_scores, tail_v, out=work.tail_out)
        if owned or shared:
            torch.sum(work.page_scores, -1, out=work.page_total)
        if owned:
            torch.bmm(work.own_scores, self.v[:owned].flatten(0, 1), out=work.own_out)
        if shared:
            torch.bmm(work.shared_scores, self.v[-shared:].flatten(0, 1), out=work.shared_out)
        return self._merge(plan, work).view(rows, -1, p)

    def _merge(self, plan: Plan, work: Workspace) -> Tensor:
        """Each query's units, weighed by their share of the whole context's softmax: [B * H, P]."""
        torch.index_select(work.out, 0, plan.merge, out=work.picked.view(-1, work.picked.shape[-1]))
        torch.index_select(work.total, 0, plan.merge, out=work.totals.view(-1))
        torch.index_select(work.peak, 0, plan.merge, out=work.weights.view(-1))
        work.weights.sub_(work.weights.amax(0)).exp_()
        total = work.totals.mul_(work.weights).sum(0)
        work.picked.mul_(work.weights[:, :, None])
        return torch.sum(work.picked, 0, out=work.merged).div_(total[:, None])
