"""Paged KV of all attention layers: prompts stored once, rows that grow by a token a step, exact release.

One pool serves both kinds of page: rows' own full pages are dense from its front, prompts' pages from its back. The
newest tokens of a row live in its tail, one page at the row's own index, and move to the pool when it is full.

Legend: A attention layers, T prompt tokens, n prompts, K key-value heads, P head dim, W tokens a page.

Usage: ``kv.store(ids, lens, states); kv.fork(prompts, first_row); kv.begin_step(rows)``; see engine.cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from thinkfast.engine.attend import LayerAttention, Plan, Shape, StepState, Workspace, make_plan
from thinkfast.engine.memory import pool
from thinkfast.engine.native import LayerMemory, Spans, make_spans
from thinkfast.engine.pages import Ints, Moves, PageTable
from thinkfast.errors import CapacityError
from thinkfast.models.attention import KVState

# Tokens by which the part of the tails that is read grows.
_ROUND = 16


class PagedKV:
    """Storage and bookkeeping; ``layers`` are the views that the decoder's step attends through."""

    def __init__(self, shape: Shape, n_layers: int, max_rows: int, max_prompts: int, max_len: int, pages: int) -> None:
        self.shape, self.pages = shape, pages
        per_owner = -(-max_len // shape.page) + 1
        self.own = PageTable(max_rows, per_owner, pages)
        self.shared = PageTable(max_prompts, per_owner, pages)
        self.prompt_of = np.full(max_rows, -1, dtype=np.int64)
        self.prompt_len = np.zeros(max_prompts, dtype=np.int64)
        self._filled = np.zeros(pages, dtype=np.int64)
        self._tail_len = np.zeros(max_rows, dtype=np.int64)
        self._dirty = True
        self._spans: Spans | None = None
        kv, p, w = shape.kv_heads, shape.head_dim, shape.page
        self.k = pool((n_layers, pages, kv, p, w), shape.dtype, shape.device)
        self.v = pool((n_layers, pages, kv, w, p), shape.dtype, shape.device)
        self.tail_k = pool((n_layers, max_rows, kv, w, p), shape.dtype, shape.device)
        self.tail_v = pool((n_layers, max_rows, kv, w, p), shape.dtype, shape.device)
        self._bias = torch.full((max_rows, w), float("-inf"), dtype=shape.dtype, device=shape.device)
        self.step = StepState(self._plan(0, 0), Workspace(shape), torch.empty(0), torch.empty(0))
        pools = zip(self.k, self.v, self.tail_k, self.tail_v, strict=True)
        self.layers = [LayerAttention(k, v, tk, tv, self.step) for k, v, tk, tv in pools]

    @property
    def pages_used(self) -> int:
        """Pages that belong to a row or a prompt, tails not counted."""
        return self.own.used + self.shared.used

    @property
    def memory(self) -> list[LayerMemory]:
        """Each layer's tensors."""
        return [LayerMemory(layer) for layer in zip(self.k, self.v, self.tail_k, self.tail_v, strict=True)]

    def _plan(self, rows: int, tail: int) -> Plan:
        return make_plan(self.shape, tail, self.own, self.shared, self.prompt_of[:rows], self._filled)

    def _append(self, table: PageTable, owners: Ints) -> Ints:
        if self.pages_used + len(owners) > self.pages:
            raise CapacityError(
                f"the KV cache has {self.pages} pages and needs {self.pages_used + len(owners)}",
                remedy="lower max_batch or max_len, or give the engine more memory",
            )
        self._dirty = True
        return table.append(owners)

    def _physical(self, shared_pages: Ints) -> Tensor:
        """Pool index of prompt pages, which lie from the back."""
        return self._index(self.pages - 1 - shared_pages)

    def _index(self, values: Ints) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.shape.device)

    def store(self, ids: Ints, lens: Ints, states: Sequence[KVState]) -> None:
        """Keep the KV of ``ids`` [n] prompts' next ``lens`` [n] tokens, behind full pages where they are not the first;
        ``states`` has one [T, K, P] pair a layer.
        """
        w = self.shape.page
        counts = -(-lens // w)
        new = self._append(self.shared, np.repeat(ids, counts))
        last = new[np.cumsum(counts) - 1]
        self._filled[new] = w
        self._filled[last] = (lens - 1) % w + 1
        self.prompt_len[ids] += lens
        # New pages are neighbours in the pool, first page last. They are laid out token by token and then copied in one
        # piece a layer. What lies behind a prompt's end is masked, but 0 * NaN is NaN: zeros fill it.
        position = np.arange(lens.sum()) - np.repeat(np.cumsum(lens) - lens, lens)
        page = np.repeat(np.cumsum(counts) - counts, lens) + position // w
        row = self._index((len(new) - 1 - page) * w + position % w)
        where = slice(self.pages - self.shared.used, self.pages - self.shared.used + len(new))
        laid = self.k.new_zeros(len(new), w, *self.k.shape[2:4])
        for k, v, state in zip(self.k, self.v, states, strict=True):
            for pages, order, values in ((k, (0, 2, 3, 1), state.k), (v, (0, 2, 1, 3), state.v)):
                laid.view(-1, *values.shape[1:]).index_copy_(0, row, values)
                pages[where].copy_(laid.permute(order))

    def read(self, prompt: int) -> Iterator[KVState]:
        """The KV of a stored prompt's tokens, which fill whole pages, layer by layer."""
        pages = self._physical(self.shared.pages(prompt))
        for k, v in zip(self.k, self.v, strict=True):
            yield KVState(k[pages].permute(0, 3, 1, 2).flatten(0, 1), v[pages].transpose(1, 2).flatten(0, 1))

    def fork(self, prompts: Ints, first_row: int) -> None:
        """New rows first_row, first_row + 1, ... share ``prompts``; their own context is empty."""
        rows = slice(first_row, first_row + len(prompts))
        self.prompt_of[rows], self._tail_len[rows] = prompts, 0
        self.tail_k[:, rows], self.tail_v[:, rows], self._bias[rows] = 0, 0, float("-inf")
        self._dirty = True

    def adopt(self, rows: Ints) -> None:
        """Make the prompts of ``rows`` (ascending, just forked, the only ones) the rows' own and free the shared pages:
        a prompt with one reader is read fastest as part of its row.
        """
        w, prompts = self.shape.page, self.prompt_of[rows]
        lens = self.prompt_len[prompts]
        full, rest = lens // w, lens % w
        source = np.concatenate([self.shared.pages(int(p))[:n] for p, n in zip(prompts, full, strict=True)])
        into, out_of = self._index(self._append(self.own, np.repeat(rows, full))), self._physical(source)
        self.k[:, into], self.v[:, into] = self.k[:, out_of], self.v[:, out_of]
        part = np.flatnonzero(rest)
        ends = self._physical(self.shared.table[prompts[part], full[part]])
        tails = self._index(rows[part])
        self.tail_k[:, tails], self.tail_v[:, tails] = self.k[:, ends].transpose(-1, -2), self.v[:, ends]
        self._tail_len[rows] = rest
        filled = np.arange(w) < rest[:, None]
        self._bias[self._index(rows)] = torch.from_numpy(np.where(filled, 0, -np.inf)).to(self._bias)
        self.prompt_of[rows] = -1
        self.release_prompts(prompts)

    def release_prompts(self, ids: Ints) -> None:
        """Free the pages of ``ids`` (distinct), which no row shares any more."""
        self.prompt_len[ids] = 0
        moves = self.shared.release(ids)
        self._filled[moves.dst] = self._filled[moves.src]
        self._copy_pages(self._physical(moves.src), self._physical(moves.dst))

    def release_rows(self, rows: Ints, moves: Moves) -> None:
        """Free what ``rows`` own; then each row moves.src[i] becomes row moves.dst[i]."""
        pages = self.own.release(rows)
        self._copy_pages(self._index(pages.src), self._index(pages.dst))
        self.own.move_owners(moves)
        self.prompt_of[moves.dst], self._tail_len[moves.dst] = self.prompt_of[moves.src], self._tail_len[moves.src]
        self._dirty = True
        if len(moves):
            src, dst = self._index(moves.src), self._index(moves.dst)
            self.tail_k[:, dst], self.tail_v[:, dst] = self.tail_k[:, src], self.tail_v[:, src]
            self._bias[dst] = self._bias[src]

    def _copy_pages(self, src: Tensor, dst: Tensor) -> None:
        self._dirty = True
        if src.numel():
            self.k[:, dst], self.v[:, dst] = self.k[:, src], self.v[:, src]

    def begin_step(self, rows: int) -> None:
        """Make room for one token in each of ``rows`` rows and point the layers at it."""
        self._turn_pages(rows)
        step = self.step
        # Read as much of the tails as the longest has filled, rounded up so that the plan lasts some steps.
        tail = (int(self._tail_len[:rows].max(initial=0)) // _ROUND + 1) * _ROUND
        if self._dirty or tail != step.plan.tail:
            step.plan = self._plan(rows, tail)
            step.work.fit(step.plan)
            step.tail_bias = self._bias[:rows, None, :tail]
            self._dirty = False
        place = np.arange(rows) * self.shape.page + self._tail_len[:rows]
        self._bias.view(-1).index_fill_(0, self._index(place), 0.0)
        head = np.arange(self.shape.kv_heads) * self.shape.page
        row = np.arange(rows)[:, None] * (self.shape.kv_heads * self.shape.page)
        step.append = self._index((row + head + self._tail_len[:rows, None]).reshape(-1))
        self._tail_len[:rows] += 1

    def begin_native(self, rows: int) -> Spans:
        """The same for the compiled step, which is told where each row's context lies."""
        self._turn_pages(rows)
        if self._dirty or self._spans is None:
            self._spans = make_spans(self.own, self.shared, self.prompt_of[:rows], self._filled, self.shape.page)
            self._dirty = False
        self._spans.tail_len.numpy()[:] = self._tail_len[:rows]
        self._tail_len[:rows] += 1
        return self._spans

    def _turn_pages(self, rows: int) -> None:
        """Move full tails to pages."""
        full = np.flatnonzero(self._tail_len[:rows] == self.shape.page)
        if len(full):
            pages, tails = self._index(self._append(self.own, full)), self._index(full)
            self.k[:, pages], self.v[:, pages] = self.tail_k[:, tails].transpose(-1, -2), self.tail_v[:, tails]
            self._tail_len[full] = 0
            self._bias[tails] = float("-inf")
