"""The accounts of slots and pages: exact after any life."""

from __future__ import annotations

import random

import pytest

from thinkfast.engine.cache import PAGE, Usage
from thinkfast.engine.cuda.book import Book
from thinkfast.errors import CapacityError

EMPTY = Usage(rows=0, prompts=0, pages=0, states=0)


@pytest.mark.parametrize("pages", [0, 64])
def test_ten_thousand_admits_forks_and_releases_leak_nothing(pages: int) -> None:
    rng = random.Random(pages)
    book = Book(8, pages, PAGE)
    waiting = None
    for _ in range(10_000):
        if waiting is None and len(book.rows) < 8 and rng.random() < 0.5:
            waiting = book.prompt(rng.randrange(1, 2 * PAGE)).handle
        if waiting is not None and len(book.rows) < 8:
            count, last = rng.randrange(0, 8 - len(book.rows) + 1), rng.random() < 0.5
            if rng.random() < 0.1:
                book.close(waiting)
                waiting = None
            elif count:
                entries = book.fork(waiting, [rng.randrange(1, PAGE)] * count, last)
                assert len({e.slot for e in entries}) == count
                waiting = None if last else waiting
        held = [page for row in book.rows for page in row.pages]
        assert len(set(held)) == len(held)
        assert len({row.slot for row in book.rows}) == len(book.rows) <= 8
        if book.rows and rng.random() < 0.5:
            gone = rng.sample(range(len(book.rows)), rng.randrange(1, len(book.rows) + 1))
            left = [row.slot for i, row in enumerate(book.rows) if i not in gone]
            book.release(gone)
            assert sorted(row.slot for row in book.rows) == sorted(left)
    book.release(range(len(book.rows)))
    if waiting is not None:
        book.close(waiting)
    assert book.usage == EMPTY
    assert len(book._free_slots) == 9
    assert len(book._free_pages) == pages


def test_a_sole_row_takes_its_prompts_pages_over_and_siblings_share_them() -> None:
    book = Book(4, 20, PAGE)
    one = book.fork(book.prompt(PAGE + 1).handle, [PAGE], last=True)[0]
    assert (one.shared, len(one.pages), one.source) == (0, 3, None)
    many = book.fork(book.prompt(PAGE + 1).handle, [1, 1], last=True)
    assert [len(e.pages) for e in many] == [3, 3]
    assert many[0].pages[:2] == many[1].pages[:2]
    assert many[0].source == many[1].slot
    assert book.tiles(16) == [[1, 2]]


def test_a_full_cache_says_what_to_do() -> None:
    book = Book(4, 2, PAGE)
    with pytest.raises(CapacityError, match="free pages"):
        book.prompt(3 * PAGE)
