"""The runner on a GPU: prefill, fork, and a captured step from token to token, with the host one step behind.

``step`` launches a step and answers with the codes of the one before, so the device always has work while the host
thinks. A row that has ended runs along once more, as nobody; its tokens and its caches do not change by it.

Usage: ``CudaRunner(model, plan, eos_ids)``; the verbs are engine.runner's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thinkfast.engine.cache import PAGE, PromptHandle, Usage
from thinkfast.engine.cuda.book import Book, Entry, Prompt
from thinkfast.engine.cuda.flights import Flights
from thinkfast.engine.cuda.graphs import Graphs
from thinkfast.engine.cuda.prefill import Prefill
from thinkfast.engine.cuda.state import State
from thinkfast.engine.cuda.step import RING, Step
from thinkfast.engine.cuda.stopwatch import Stopwatch
from thinkfast.engine.pages import Ints, Moves
from thinkfast.engine.plan import MemoryPlan
from thinkfast.engine.rows import RowStart, Said
from thinkfast.engine.runner import Start
from thinkfast.kernels.triton.attention import TILE_ROWS
from thinkfast.kernels.triton.sampler import draw, scan
from thinkfast.models.decoder import Decoder
from thinkfast.models.ragged import Ragged

_NO_CODES: Ints = np.zeros(0, dtype=np.int64)


class CudaRunner:
    """Runs ``model`` within the sizes of ``plan``; ``eos_ids`` end a row."""

    @torch.inference_mode()
    def __init__(self, model: Decoder, plan: MemoryPlan, eos_ids: frozenset[int], capture: bool = True) -> None:
        self.model, self.plan = model, plan
        weight = model.head_weight
        self.device = weight.device
        self._capture = capture
        self.book = Book(plan.max_batch, plan.prompts, plan.pages, PAGE)
        per_row = -(-plan.max_len // PAGE) + 1
        self.state = State(model, self.book.slots, per_row, plan.pages, plan.state_dtype or torch.float32)
        eos = torch.zeros(model.spec.vocab_size, dtype=torch.uint8, device=weight.device)
        eos[sorted(eos_ids)] = 1
        stops = torch.zeros(1, model.spec.vocab_size, dtype=torch.uint8, device=weight.device)
        self._decode = Step(model, self.state, plan.max_batch, plan.max_len, plan.packed_bytes)
        self._prefill = Prefill(model, self._decode.mixers, self.state)
        self.graphs = Graphs(self._decode, plan.max_batch, self.book.dummy, eos, stops)
        self._flights = Flights(self.book.slots, plan.max_len, plan.max_batch, weight.device)
        self._watch = Stopwatch(weight.device)
        self._logits: dict[int, Tensor] = {}
        self._filtered: dict[int, bool] = {}
        self._slots: Ints = _NO_CODES
        self._turn = 0
        self._kind = (1, False, False)

    def add_stop_table(self, table: Tensor) -> int:
        """Register the tokens [V] bool that may complete a stop string; returns the number for RowStart.stop."""
        stops = torch.cat((self.graphs.stops, table.to(self.device, torch.uint8)[None]))
        self.graphs.forget(stops)
        return stops.shape[0] - 1

    @torch.inference_mode()
    def prepare(self, filters: bool) -> None:
        """Compile, measure and capture steps of all batch sizes, those of rows with ``filters`` or without."""
        # The largest first: the others then run in its memory.
        for size in self.graphs.sizes[::-1]:
            for tiled in (False, True) if self.book.has_kv and self.graphs.room(size) else (False,):
                self.graphs.prepare(size, tiled, filters, self._capture)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[PromptHandle]:
        """Run n prompts in one packed pass and keep their states and their next-token logits."""
        stored: list[Prompt] = []
        try:
            stored += (self.book.prompt(len(prompt)) for prompt in prompts)
            self._pass(stored, prompts)
        except BaseException:  # out of memory, or a user who has waited enough: nobody else knows of their places
            for prompt in stored:
                self.book.close(prompt.handle)
            raise
        return [prompt.handle for prompt in stored]

    @torch.inference_mode()
    def extend(self, prompt: PromptHandle, tokens: Sequence[int]) -> PromptHandle:
        """Run the next tokens of a prompt whose tokens so far fill whole pages; what it then is. A state that is kept
        in bf16 or fp8 is rounded between.
        """
        stored = self.book.extend(prompt, len(tokens))
        self._pass([stored], [tokens], prompt.length)
        return stored.handle

    def _pass(self, stored: Sequence[Prompt], prompts: Sequence[Sequence[int]], before: int = 0) -> None:
        began, send, lens = self._watch.start(), self.state.send, [len(p) for p in prompts]
        ragged = Ragged(send(np.array(lens)), lens)
        tokens = send(np.concatenate([np.asarray(p, dtype=np.int64) for p in prompts]))
        places = self.state.places([p.pages for p in stored], lens, before)
        hidden = self._prefill(tokens, ragged, send(np.array([p.slot for p in stored])), places)
        for prompt, line in zip(stored, self.model.logits(hidden), strict=True):
            self._logits[prompt.handle.id] = line
        self._watch.stop(began, stored[0].handle)

    def prefilled(self) -> dict[PromptHandle, float] | None:
        """Seconds on the device of prefills that have ended since last asked, by what their first prompt then was."""
        return self._watch.read()

    @torch.inference_mode()
    def fork(self, starts: Sequence[Start]) -> Ints:
        """Add rows behind the present ones and draw their first tokens, whose codes come with the next step's."""
        entries: list[Entry] = []
        rows: list[RowStart] = []
        logits: list[Tensor] = []
        first = len(self.book.rows)
        for start in starts:
            rows += start.rows
            entries += self.book.fork(start.prompt, [row.limit for row in start.rows], start.last)
            logits += [self._logits[start.prompt.id]] * len(start.rows)
        if entries:
            try:
                self._enter(entries, rows, logits)
            except BaseException:  # as in prefill
                self._flights.leave(np.array([entry.slot for entry in entries]))
                self.book.release(range(first, len(self.book.rows)))
                raise
        for start in starts:
            if start.last:
                del self._logits[start.prompt.id]
            elif (line := self._logits[start.prompt.id]).untyped_storage().nbytes() > line.nbytes:
                # One of its own: its pass's, of all the prompts there, would stay as long.
                self._logits[start.prompt.id] = line.clone()
        return _NO_CODES

    def _enter(self, entries: Sequence[Entry], rows: Sequence[RowStart], logits: list[Tensor]) -> None:
        slots = np.array([entry.slot for entry in entries])
        active = self.state.enter(entries, rows)
        self._flights.enter(slots)
        for entry, row in zip(entries, rows, strict=True):
            self._filtered[entry.slot] = row.params.truncated
        at, graphs = self._decode, self.graphs
        given, where = at.logits[: len(rows)], at.sample_rows(active)
        torch.stack(logits, out=given)
        filters = any(row.params.truncated for row in rows)
        scan(given, where, at.work)
        draw(given, where, graphs.eos, graphs.stops, at.work, at.news, filters)
        self._flights.send(at.news, slots)
        self._changed()

    def _changed(self) -> None:
        """Rows have come or gone: tell the device which slots are rows now, and what they share."""
        self._slots = np.array([row.slot for row in self.book.rows], dtype=np.int64)
        if not len(self._slots):
            return
        graphs, rows = self.graphs, len(self._slots)
        size = graphs.size(rows)
        active = np.full(size, self.book.dummy, dtype=np.int32)
        active[:rows] = self._slots
        graphs.active[:size].copy_(self.state.send(active))
        tiles = self.book.tiles(TILE_ROWS) if self.book.has_kv else []
        tiled = 0 < len(tiles) <= graphs.room(size)
        if tiled:
            table = np.full((graphs.room(size), TILE_ROWS), -1, dtype=np.int32)
            for line, members in zip(table, tiles, strict=False):
                line[: len(members)] = members
            graphs.tiles[: len(table)].copy_(self.state.send(table))
        self._kind = (size, tiled, any(self._filtered[slot] for slot in self._slots.tolist()))

    @torch.inference_mode()
    def step(self) -> Ints:
        """Launch a step of every row; returns the rows' codes of the step, or first draw, before."""
        try:
            self.graphs.run(*self._kind, capture=self._capture)
            self._turn = (self._turn + 1) % RING
        except BaseException:  # only the device knows by now how many steps there have been
            self._turn = int(self._decode.turn) % RING
            raise
        self._flights.add(self._decode.ring[self._turn], self._slots)
        self._flights.land(keep=1)
        return self._flights.codes(self._slots)

    def said(self, rows: Sequence[int]) -> list[Said]:
        """What ``rows`` have generated, as far as it has been heard."""
        return [self._flights.said(self.book.rows[row].slot) for row in rows]

    @torch.inference_mode()
    def release(self, rows: Sequence[int]) -> Moves:
        """Take ``rows`` out at once; the answer says which rows have moved into their places."""
        self._flights.leave(np.array([self.book.rows[row].slot for row in rows], dtype=np.int64))
        moves = self.book.release(rows)
        self._changed()
        return moves

    def close(self, prompt: PromptHandle) -> None:
        """No more forks of this prompt will follow; nothing where that is known."""
        self._logits.pop(prompt.id, None)
        self.book.close(prompt)

    @property
    def path(self) -> str:
        """What runs a step."""
        return "captured"

    @property
    def usage(self) -> Usage:
        """What is held now; all zero when nothing is in flight."""
        return self.book.usage
