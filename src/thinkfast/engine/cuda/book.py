"""Who has which slot and which KV pages, on the host: exact, in plain Python, with no tensor in sight.

A slot holds everything a chain carries (state, parameters, its page list) and never moves; rows are a list of slots
that is kept dense. A row's pages are taken when it enters, for all the tokens it may have: the scheduler reserves the
worst case anyway, and so no step has bookkeeping to do.

Usage: ``prompt = book.prompt(12); new = book.fork(prompt, [64, 64], last=True); book.release([1])``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from thinkfast.engine.cache import PromptHandle, Usage
from thinkfast.engine.pages import Moves, compact
from thinkfast.errors import CapacityError


@dataclass(slots=True)
class Prompt:
    """A stored prompt. rows: readers of its shared pages. open: more forks may come, and ``slot`` holds its state."""

    handle: PromptHandle
    slot: int
    pages: list[int]
    rows: int = 0
    open: bool = True


@dataclass(slots=True)
class Row:
    """A chain in flight. prompt: whose pages it shares, None where it owns its prompt's. pages: its own."""

    slot: int
    prompt: Prompt | None
    pages: list[int]


@dataclass(frozen=True, slots=True)
class Entry:
    """A new row: its slot, the slot its state is to be copied from (None: it is there), shared tokens, all pages."""

    slot: int
    source: int | None
    shared: int
    pages: list[int] = field(default_factory=list)


class Book:
    """Accounts of ``max_rows`` rows and ``prompts`` prompts that wait for more, ``pages`` KV pages of ``page`` tokens
    (0: the model has no KV).
    """

    def __init__(self, max_rows: int, prompts: int, pages: int, page: int) -> None:
        self.page, self.has_kv = page, pages > 0
        self.rows: list[Row] = []
        # The last slot is nobody's: it fills up a batch.
        self.slots = max_rows + prompts + 1
        self._free_slots = list(range(max_rows + prompts))[::-1]
        self._free_pages = list(range(pages))[::-1]
        self._pages = pages
        self._prompts: dict[int, Prompt] = {}
        self._ids = count()

    @property
    def dummy(self) -> int:
        """The slot that fills up a batch."""
        return self.slots - 1

    @property
    def usage(self) -> Usage:
        """What is held now."""
        opened = sum(p.open for p in self._prompts.values())
        return Usage(len(self.rows), len(self._prompts), self._pages - len(self._free_pages), opened)

    def __getitem__(self, handle: PromptHandle) -> Prompt:
        return self._prompts[handle.id]

    def _take(self, tokens: int) -> list[int]:
        if not self.has_kv:
            return []
        wanted = -(-tokens // self.page)
        if wanted > len(self._free_pages):
            raise CapacityError(
                f"the KV cache has {len(self._free_pages)} free pages and {wanted} are needed",
                remedy="lower max_batch or max_len, or give the engine more memory",
            )
        taken = self._free_pages[len(self._free_pages) - wanted :]
        del self._free_pages[len(self._free_pages) - wanted :]
        return taken

    def prompt(self, length: int) -> Prompt:
        """Room for a prompt of ``length`` tokens."""
        handle, pages = PromptHandle(next(self._ids), length), self._take(length)
        found = self._prompts[handle.id] = Prompt(handle, self._free_slots.pop(), pages)
        return found

    def extend(self, handle: PromptHandle, tokens: int) -> Prompt:
        """Room for ``tokens`` more of a prompt whose tokens so far fill whole pages."""
        prompt = self[handle]
        prompt.pages += self._take(tokens)
        prompt.handle = PromptHandle(handle.id, prompt.handle.length + tokens)
        return prompt

    def fork(self, handle: PromptHandle, limits: Sequence[int], last: bool) -> list[Entry]:
        """One new row for each of ``limits``, the most new tokens it may have; appended in order."""
        prompt = self[handle]
        length = prompt.handle.length
        if last and len(limits) == 1 and not prompt.rows:
            own = len(prompt.pages) * self.page
            pages = prompt.pages + self._take(max(0, length + limits[0] - own))
            self.rows.append(Row(prompt.slot, None, pages))
            del self._prompts[handle.id]
            return [Entry(prompt.slot, None, 0, pages)]
        entries = []
        for i, limit in enumerate(limits):
            inherits = last and i == len(limits) - 1
            slot = prompt.slot if inherits else self._free_slots.pop()
            row = Row(slot, prompt, self._take(limit))
            self.rows.append(row)
            source = None if inherits else prompt.slot
            entries.append(Entry(slot, source, length if self.has_kv else 0, prompt.pages + row.pages))
        prompt.rows += len(limits)
        prompt.open = not last
        if not limits and last:
            self.close(handle)
        return entries

    def close(self, handle: PromptHandle) -> None:
        """No more forks: the prompt's slot goes now, its pages when its last row leaves; nothing if it is gone."""
        if (prompt := self._prompts.get(handle.id)) is None:
            return
        if prompt.open:
            self._free_slots.append(prompt.slot)
        prompt.open = False
        self._settle(prompt)

    def _settle(self, prompt: Prompt) -> None:
        if not prompt.rows and not prompt.open and self._prompts.pop(prompt.handle.id, None) is not None:
            self._free_pages += prompt.pages

    def release(self, rows: Sequence[int]) -> Moves:
        """Take ``rows`` (distinct) out; the answer says which rows have moved into their places."""
        gone = np.array(sorted(rows), dtype=np.int64)
        moves = compact(len(self.rows), gone)
        for index in gone:
            row = self.rows[index]
            self._free_slots.append(row.slot)
            self._free_pages += row.pages
            if row.prompt is not None:
                row.prompt.rows -= 1
                self._settle(row.prompt)
        for src, dst in zip(moves.src.tolist(), moves.dst.tolist(), strict=True):
            self.rows[dst] = self.rows[src]
        del self.rows[len(self.rows) - len(gone) :]
        return moves

    def tiles(self, size: int) -> list[list[int]]:
        """Rows that share a prompt, in tiles of at most ``size``."""
        groups: dict[int, list[int]] = {}
        for number, row in enumerate(self.rows):
            if row.prompt is not None:
                groups.setdefault(row.prompt.handle.id, []).append(number)
        return [rows[i : i + size] for rows in groups.values() for i in range(0, len(rows), size)]
