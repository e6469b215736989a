"""Exact page accounting on the host: which page belongs to whom, kept dense, in a few numpy operations.

Pages in use are always 0 .. used - 1: a freed page is filled with the last one in use. So attention can run in place
over all pages in use, and a leak shows as a number. This file knows nothing of tensors: a release answers with the
copies that the owner of the memory has to make.

Usage: ``pages = table.append(owners); moves = table.release(owners)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from thinkfast.errors import CapacityError

Ints: TypeAlias = npt.NDArray[np.int64]
NONE = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Moves:
    """Copy src[i] to dst[i]; no index stands in both."""

    src: Ints
    dst: Ints

    def __len__(self) -> int:
        return len(self.src)


def compact(used: int, freed: Ints) -> Moves:
    """The moves that make 0 .. used - len(freed) - 1 dense again after ``freed`` (distinct) leave 0 .. used - 1."""
    left = used - len(freed)
    stays = np.ones(used, dtype=np.bool_)
    stays[freed] = False
    return Moves(left + np.flatnonzero(stays[left:]), np.flatnonzero(~stays[:left]))


class PageTable:
    """Pages of ``owners`` owners, each with at most ``per_owner`` pages in order, ``capacity`` pages in all."""

    def __init__(self, owners: int, per_owner: int, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self.table = np.zeros((owners, per_owner), dtype=np.int64)
        self.count = np.zeros(owners, dtype=np.int64)
        self.owner = np.zeros(capacity, dtype=np.int64)
        self._place = np.zeros(capacity, dtype=np.int64)

    def append(self, owners: Ints) -> Ints:
        """One new page for each entry of ``owners``, at the end of its list; an owner may stand there repeatedly,
        in one run.

        Errors: CapacityError where the pool is full; the scheduler's reservations are there to prevent it.
        """
        if self.used + len(owners) > self.capacity:
            raise CapacityError(
                f"the KV cache has {self.capacity} pages and {self.used + len(owners)} are needed",
                remedy="lower max_batch or max_len, or give the engine more memory",
            )
        pages = np.arange(self.used, self.used + len(owners))
        starts = np.flatnonzero(np.concatenate([[True], owners[1:] != owners[:-1]])[: len(owners)])
        run = np.arange(len(owners)) - np.repeat(starts, np.diff(np.append(starts, len(owners))))
        places = self.count[owners] + run
        self.table[owners, places] = pages
        self.owner[pages], self._place[pages] = owners, places
        np.add.at(self.count, owners, 1)
        self.used += len(owners)
        return pages

    def pages(self, owner: int) -> Ints:
        """The pages of one owner, in order."""
        return self.table[owner, : self.count[owner]]

    def release(self, owners: Ints) -> Moves:
        """Free all pages of ``owners`` (distinct); returns the copies that close the gaps."""
        freed = np.concatenate([NONE, *(self.pages(int(owner)) for owner in owners)])
        self.count[owners] = 0
        moves = compact(self.used, freed)
        self.used -= len(freed)
        self.owner[moves.dst], self._place[moves.dst] = self.owner[moves.src], self._place[moves.src]
        self.table[self.owner[moves.dst], self._place[moves.dst]] = moves.dst
        return moves

    def move_owners(self, moves: Moves) -> None:
        """Rename owners: everything of src[i] belongs to dst[i], which owned nothing."""
        self.table[moves.dst], self.count[moves.dst] = self.table[moves.src], self.count[moves.src]
        self.count[moves.src] = 0
        pages = np.concatenate([NONE, *(self.pages(int(owner)) for owner in moves.dst)])
        self.owner[pages] = np.repeat(moves.dst, self.count[moves.dst])
