"""The accounts of slots and pages: exact after any life."""

from __future__ import annotations

import random

import pytest

from thinkfast.engine.cache import PAGE, PromptHandle, Usage
from thinkfast.engine.cuda.book import Book
from thinkfast.errors import CapacityError

EMPTY = Usage(rows=0, prompts=0, pages=0, states=0)


@pytest.mark.parametrize(("pages", "prompts"), [(0, 1), (64, 1), (0, 8), (96, 3)])
def test_ten_thousand_admits_forks_and_releases_leak_nothing(pages: int, prompts: int) -> None:
    rng = random.Random(pages)
    book = Book(8, prompts, pages, PAGE)
    waiting: list[PromptHandle] = []
    most = 0
    for _ in range(10_000):
        if len(waiting) < prompts and len(book.rows) < 8 and rng.random() < 0.5:
            waiting.append(book.prompt(rng.randrange(1, 2 * PAGE) if rng.random() < 0.7 else PAGE).handle)
            if rng.random() < 0.3 and waiting[-1].length == PAGE:
                waiting[-1] = book.extend(waiting[-1], rng.randrange(1, PAGE)).handle
        if waiting and len(book.rows) < 8:
            one = rng.choice(waiting)
            count, last = rng.randrange(0, 8 - len(book.rows) + 1), rng.random() < 0.5
            if rng.random() < 0.1:
                book.close(one)
                waiting.remove(one)
            elif count:
                entries = book.fork(one, [rng.randrange(1, PAGE)] * count, last)
                assert len({e.slot for e in entries}) == count
                if last:
                    waiting.remove(one)
        most = max(most, len(book.rows) + len(waiting))
        held = [page for row in book.rows for page in row.pages]
        assert len(set(held)) == len(held)
        slots = [row.slot for row in book.rows] + [book[handle].slot for handle in waiting]
        assert len(set(slots)) == len(slots)
        assert book.dummy not in slots
        assert len(book.rows) <= 8
        if book.rows and rng.random() < 0.5:
            gone = rng.sample(range(len(book.rows)), rng.randrange(1, len(book.rows) + 1))
            left = [row.slot for i, row in enumerate(book.rows) if i not in gone]
            book.release(gone)
            assert sorted(row.slot for row in book.rows) == sorted(left)
    book.release(range(len(book.rows)))
    for handle in waiting:
        book.close(handle)
    assert most == 8 + prompts  # every slot was needed at some moment
    assert book.usage == EMPTY
    assert len(book._free_slots) == 8 + prompts
    assert len(book._free_pages) == pages


def test_a_sole_row_takes_its_prompts_pages_over_and_siblings_share_them() -> None:
    book = Book(4, 1, 20, PAGE)
    one = book.fork(book.prompt(PAGE + 1).handle, [PAGE], last=True)[0]
    assert (one.shared, len(one.pages), one.source) == (0, 3, None)
    many = book.fork(book.prompt(PAGE + 1).handle, [1, 1], last=True)
    assert [len(e.pages) for e in many] == [3, 3]
    assert many[0].pages[:2] == many[1].pages[:2]
    assert many[0].source == many[1].slot
    assert book.tiles(16) == [[1, 2]]


def test_a_prompt_that_goes_on_takes_further_pages() -> None:
    book = Book(4, 1, 20, PAGE)
    first = book.prompt(2 * PAGE)
    slot, pages, before = first.slot, list(first.pages), first.handle
    more = book.extend(before, 3)
    assert (more.slot, more.pages[:2], len(more.pages), more.handle.length) == (slot, pages, 3, 2 * PAGE + 3)
    # Rows go on behind all of it, whichever of the handles they are asked for with.
    own, other = book.fork(before, [1, 1], last=True)
    assert own.shared == other.shared == 2 * PAGE + 3
    book.release([0, 1])
    assert book.usage == EMPTY
    (entry,) = book.fork(book.extend(book.prompt(PAGE).handle, PAGE).handle, [1], last=True)
    assert len(entry.pages) == 3


def test_a_full_cache_says_what_to_do() -> None:
    book = Book(4, 1, 2, PAGE)
    with pytest.raises(CapacityError, match="free pages"):
        book.prompt(3 * PAGE)
