"""The cache: what the chains in flight remember, whatever the layout. Prompts are stored once and forked into rows.

Rows are 0 .. B - 1 at all times: when rows leave, the last ones move into the holes, and ``release`` tells which.
The runner and the decoder see handles, row numbers and per-layer step caches; pages and slots stay in here, so a GPU
layout can take this one's place.

Usage: ``handles = cache.store(lens, states); cache.fork([Fork(handles[0], 64, last=True)]); cache.begin_step()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch

from thinkfast.engine.attend import Shape
from thinkfast.engine.kv import PagedKV
from thinkfast.engine.native import LayerMemory, Spans
from thinkfast.engine.pages import Moves, compact
from thinkfast.engine.slots import SSMSlots
from thinkfast.models.attention import KVState
from thinkfast.models.decoder import LayerState, Past, StepCache
from thinkfast.models.mixers import SSMState
from thinkfast.models.spec import ModelSpec

# Tokens a KV page: 64 is within 5 % of the fastest from 100 to 700 tokens of context (docs/engine-cpu.md).
PAGE = 64


@dataclass(frozen=True, slots=True)
class PromptHandle:
    """A prompt of which ``length`` tokens are prefilled. ``id`` is never used twice."""

    id: int
    length: int


@dataclass(frozen=True, slots=True)
class Fork:
    """``count`` new rows that go on from ``prompt``; ``last`` says that there will be no more."""

    prompt: PromptHandle
    count: int
    last: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """What is held now; all zero when nothing is in flight, or something leaked."""

    rows: int
    prompts: int
    pages: int
    states: int


@dataclass(slots=True)
class _Prompt:
    """place: index in the KV tables. rows: readers left. open: more forks may come."""

    place: int
    rows: int = 0
    open: bool = True


class Cache:
    """KV and SSM state of at most ``max_rows`` rows of at most ``max_len`` tokens, in ``pages`` KV pages."""

    def __init__(
        self, spec: ModelSpec, max_rows: int, max_len: int, pages: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.spec, self.max_rows, self.rows = spec, max_rows, 0
        # One prompt may be waiting for rows, and so may each that is kept; every other one has at least one row.
        max_prompts = 2 * max_rows + 1
        self._kv: PagedKV | None = None
        self._ssm: SSMSlots | None = None
        if spec.n_attention:
            shape = Shape(spec.n_kv_heads, spec.group, spec.head_dim, PAGE, dtype, device)
            self._kv = PagedKV(shape, spec.n_attention, max_rows, max_prompts, max_len, pages)
        if spec.is_student:
            self._ssm = SSMSlots(spec, max_rows, dtype, device)
        self._device = device
        self._ids = count()
        self._places = list(range(max_prompts))[::-1]
        self._prompts: dict[int, _Prompt] = {}
        self._row_prompt: list[int] = []
        self._layers: list[StepCache] = []
        self._layers_rows = -1

    def store(self, lens: Sequence[int], states: Sequence[LayerState]) -> list[PromptHandle]:
        """Keep what a packed prefill of prompts with ``lens`` tokens left behind, one state a layer."""
        handles = [PromptHandle(next(self._ids), length) for length in lens]
        for handle in handles:
            self._prompts[handle.id] = _Prompt(self._places.pop())
        self._keep(handles, lens, states)
        return handles

    def past(self, handle: PromptHandle) -> Past:
        """What a prompt that is not complete has left so far."""
        prompt = self._prompts[handle.id]
        kv = iter(()) if self._kv is None else self._kv.read(prompt.place)
        ssm = iter(()) if self._ssm is None else self._ssm.read(handle.id)
        kinds = self.spec.layer_types
        return Past(handle.length, (next(kv) if kind == "attention" else next(ssm) for kind in kinds))

    def extend(self, handle: PromptHandle, tokens: int, states: Sequence[LayerState]) -> PromptHandle:
        """Keep what the next ``tokens`` of a prompt left behind. Those before them fill whole pages."""
        self._keep([handle], [tokens], states)
        return PromptHandle(handle.id, handle.length + tokens)

    def _keep(self, handles: Sequence[PromptHandle], lens: Sequence[int], states: Sequence[LayerState]) -> None:
        if self._kv is not None:
            places = np.array([self._prompts[h.id].place for h in handles])
            self._kv.store(places, np.array(lens), [s for s in states if isinstance(s, KVState)])
        if self._ssm is not None:
            self._ssm.store([h.id for h in handles], [s for s in states if isinstance(s, SSMState)])

    def fork(self, forks: Sequence[Fork]) -> range:
        """Add rows that go on from stored prompts; returns the new rows, in the order of ``forks``."""
        first, row = self.rows, self.rows
        sole: list[int] = []
        for fork in forks:
            prompt = self._prompts[fork.prompt.id]
            if self._kv is not None:
                self._kv.fork(np.full(fork.count, prompt.place), row)
            if self._ssm is not None:
                self._ssm.fork(fork.prompt.id, row, fork.count)
            if fork.last and fork.count == 1 and not prompt.rows:
                sole.append(row)
            prompt.rows += fork.count
            self._row_prompt += [fork.prompt.id] * fork.count
            row += fork.count
        self.rows = row
        if self._kv is not None and sole:
            self._kv.adopt(np.array(sole))
            for adopted in sole:
                self._forget(self._row_prompt[adopted])
        for fork in forks:
            if fork.last:
                self.close(fork.prompt)
        return range(first, row)

    def close(self, handle: PromptHandle) -> None:
        """No more forks of this prompt: its state goes now, its KV when its last row leaves; nothing if it is gone."""
        if (prompt := self._prompts.get(handle.id)) is None:
            return
        prompt.open = False
        if self._ssm is not None:
            self._ssm.drop(handle.id)
        if not prompt.rows:
            self._free([handle.id])

    def release(self, rows: Sequence[int]) -> Moves:
        """Take ``rows`` (distinct) out; the answer says which rows have moved into their places."""
        gone = np.array(sorted(rows), dtype=np.int64)
        moves = compact(self.rows, gone)
        prompts = [self._row_prompt[row] for row in gone]
        for src, dst in zip(moves.src, moves.dst, strict=True):
            self._row_prompt[dst] = self._row_prompt[src]
        self.rows -= len(gone)
        del self._row_prompt[self.rows :]
        if self._kv is not None:
            self._kv.release_rows(gone, moves)
        if self._ssm is not None and len(moves):
            index = torch.from_numpy(np.stack([moves.src, moves.dst])).to(self._device)
            self._ssm.move(index[0], index[1])
        unread = []
        for prompt_id in prompts:
            if (prompt := self._prompts.get(prompt_id)) is not None:
                prompt.rows -= 1
                if not prompt.rows and not prompt.open:
                    unread.append(prompt_id)
        self._free(unread)
        return moves

    def _free(self, prompt_ids: list[int]) -> None:
        if prompt_ids and self._kv is not None:
            self._kv.release_prompts(np.array([self._prompts[i].place for i in prompt_ids]))
        for prompt_id in prompt_ids:
            self._forget(prompt_id)

    def _forget(self, prompt_id: int) -> None:
        if self._ssm is not None:
            self._ssm.drop(prompt_id)
        self._places.append(self._prompts.pop(prompt_id).place)

    def begin_step(self) -> Sequence[StepCache]:
        """Make room for one token a row; returns each layer's cache, good for one step of the decoder."""
        if self._kv is not None:
            self._kv.begin_step(self.rows)
        if self.rows != self._layers_rows:
            kv = iter(self._kv.layers if self._kv is not None else ())
            ssm = iter(self._ssm.views(self.rows) if self._ssm is not None else ())
            self._layers = [next(kv) if kind == "attention" else next(ssm) for kind in self.spec.layer_types]
            self._layers_rows = self.rows
        return self._layers

    def begin_native(self) -> Spans | None:
        """The same for the compiled step: where rows' contexts lie, None where no layer has any."""
        return None if self._kv is None else self._kv.begin_native(self.rows)

    @property
    def memory(self) -> list[LayerMemory]:
        """Each layer's tensors, for the compiled step."""
        kv = iter(self._kv.memory if self._kv is not None else ())
        ssm = iter(self._ssm.memory if self._ssm is not None else ())
        return [next(kv) if kind == "attention" else next(ssm) for kind in self.spec.layer_types]

    @property
    def usage(self) -> Usage:
        """What is held now."""
        pages = self._kv.pages_used if self._kv is not None else 0
        return Usage(self.rows, len(self._prompts), pages, self._ssm.prompts if self._ssm is not None else 0)
