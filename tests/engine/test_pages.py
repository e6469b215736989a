from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from thinkfast.engine.pages import PageTable, compact
from thinkfast.errors import CapacityError

OWNERS, PER_OWNER = 6, 50


@given(st.integers(0, 30), st.data())
def test_compact_keeps_what_stays_dense(used: int, data: st.DataObject) -> None:
    freed = sorted(data.draw(st.sets(st.integers(0, used - 1)) if used else st.just(set())))
    moves = compact(used, np.array(freed, dtype=np.int64))
    memory = list(range(used))
    for src, dst in zip(moves.src, moves.dst, strict=True):
        memory[dst] = memory[src]
    left = used - len(freed)
    assert sorted(memory[:left]) == [i for i in range(used) if i not in freed]
    assert len(moves) == sum(i < left for i in freed)
    assert set(moves.src).isdisjoint(moves.dst)


class Pages(RuleBasedStateMachine):
    """The table against a dict of lists; each page of the memory carries a unique mark."""

    def __init__(self) -> None:
        super().__init__()
        self.table = PageTable(OWNERS, PER_OWNER, OWNERS * PER_OWNER)
        self.memory: dict[int, int] = {}
        self.model: dict[int, list[int]] = {i: [] for i in range(OWNERS)}
        self.marks = 0

    @rule(counts=st.lists(st.integers(0, 4), min_size=OWNERS, max_size=OWNERS), order=st.permutations(range(OWNERS)))
    def append(self, counts: list[int], order: list[int]) -> None:
        counts = [c if len(self.model[i]) + c <= PER_OWNER else 0 for i, c in enumerate(counts)]
        owners = np.repeat(order, [counts[i] for i in order])
        for page, owner in zip(self.table.append(owners), owners, strict=True):
            self.memory[int(page)] = self.marks
            self.model[int(owner)].append(self.marks)
            self.marks += 1

    @rule(owners=st.sets(st.integers(0, OWNERS - 1)))
    def release(self, owners: set[int]) -> None:
        moves = self.table.release(np.array(sorted(owners), dtype=np.int64))
        for src, dst in zip(moves.src, moves.dst, strict=True):
            self.memory[int(dst)] = self.memory[int(src)]
        for owner in owners:
            self.model[owner] = []

    @precondition(lambda self: any(self.model.values()))
    @rule(freed=st.sets(st.integers(0, OWNERS - 1)))
    def compact_owners(self, freed: set[int]) -> None:
        self.release(freed)
        moves = compact(OWNERS, np.array(sorted(freed), dtype=np.int64))
        self.table.move_owners(moves)
        for src, dst in zip(moves.src, moves.dst, strict=True):
            self.model[int(dst)], self.model[int(src)] = self.model[int(src)], []

    @invariant()
    def agrees(self) -> None:
        assert self.table.used == sum(len(pages) for pages in self.model.values())
        for owner, marks in self.model.items():
            pages = self.table.pages(owner)
            assert [self.memory[int(page)] for page in pages] == marks
            assert (self.table.owner[pages] == owner).all()


TestPages = Pages.TestCase


def test_a_full_pool_says_so_and_stays_as_it_was() -> None:
    table = PageTable(2, 4, 3)
    table.append(np.array([0, 0]))
    with pytest.raises(CapacityError, match="3 pages and 4"):
        table.append(np.array([1, 1]))
    assert table.used == 2
    assert table.append(np.array([1])).tolist() == [2]
