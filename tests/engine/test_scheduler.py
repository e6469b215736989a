from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkfast.engine.request import Request, SamplingParams
from thinkfast.engine.scheduler import Limits, Scheduler
from thinkfast.errors import CapacityError, InputError

LIMITS = Limits(max_batch=8, max_len=100, pages=40, page=10, prefill_tokens=64, prompts=8)


def request(name: str, n: int = 1, prompt: int = 5, new: int = 20) -> Request:
    return Request(name, tuple(range(prompt)), SamplingParams(n=n, max_tokens=new))


def test_samples_of_one_request_enter_as_rows_appear() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.submit(request("a", n=11))
    (first,) = scheduler.admit()
    assert (first.first, first.count, first.new, first.last) == (0, 8, True, False)
    assert scheduler.admit() == []
    scheduler.finished("a")
    (second,) = scheduler.admit()
    assert (second.first, second.count, second.new, second.last) == (8, 1, False, False)
    scheduler.finished("a")
    scheduler.finished("a")
    (third,) = scheduler.admit()
    assert (third.first, third.count, third.last) == (9, 2, True)


def test_prefill_between_two_steps_is_bounded_but_never_starves() -> None:
    scheduler = Scheduler(LIMITS)
    for name in "abc":
        scheduler.submit(request(name, prompt=40))
    assert [a.request.id for a in scheduler.admit()] == ["a"]
    assert [a.request.id for a in scheduler.admit()] == ["b"]
    alone = Scheduler(LIMITS)
    alone.submit(request("long", prompt=90))
    assert [a.request.id for a in alone.admit()] == ["long"]


def test_prompts_that_come_into_a_running_batch_are_prefilled_together() -> None:
    scheduler = Scheduler(replace(LIMITS, together=3))
    for name in "abcdefghijkl":
        scheduler.submit(request(name))
    assert len(scheduler.admit()) == 8  # nothing runs: at once
    scheduler.finished("a")
    assert scheduler.admit() == []
    scheduler.finished("b")
    assert scheduler.admit() == []
    scheduler.finished("c")
    assert [a.request.id for a in scheduler.admit()] == ["i", "j", "k"]
    scheduler.finished("d")
    assert [len(scheduler.admit()) for _ in range(4)] == [0, 0, 0, 1]  # but no longer than as many steps


def test_a_first_filling_that_is_prefilled_in_parts_is_not_held_up() -> None:
    scheduler = Scheduler(replace(LIMITS, together=4))
    for i in range(8):
        scheduler.submit(request(str(i), prompt=20))
    assert [len(scheduler.admit()) for _ in range(3)] == [3, 3, 2]


def test_further_samples_of_a_prompt_wait_for_nobody() -> None:
    scheduler = Scheduler(replace(LIMITS, together=4))
    scheduler.submit(request("a", n=9))
    assert scheduler.admit()[0].count == 8
    scheduler.finished("a")
    assert scheduler.admit()[0].count == 1


def test_pages_are_reserved_for_the_worst_case() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.submit(request("a", n=8, prompt=50, new=50))  # 5 for the prompt, 5 a row: 7 rows fit in 40
    (admission,) = scheduler.admit()
    assert admission.count == 7
    assert scheduler.pages_reserved == 40


@pytest.mark.parametrize(
    ("bad", "error", "match"),
    [
        (request("a", prompt=0), InputError, "empty"),
        (request("a", prompt=100), InputError, "100 tokens and max_len is 100"),
    ],
)
def test_what_can_never_run_is_refused(bad: Request, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Scheduler(LIMITS).submit(bad)


def test_what_can_never_fit_is_refused() -> None:
    with pytest.raises(CapacityError, match="needs 10 KV pages of 10 tokens, there are 3"):
        Scheduler(Limits(8, 100, 3, 10, 64, 8)).submit(request("a", prompt=50, new=50))


def test_an_id_may_be_used_again_only_after_its_chains_are_done() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.submit(request("a"))
    with pytest.raises(InputError, match="'a'"):
        scheduler.submit(request("a"))
    scheduler.admit()
    scheduler.finished("a")
    scheduler.submit(request("a"))


requests = st.builds(request, st.uuids().map(str), st.integers(1, 20), st.integers(1, 90), st.integers(1, 200))


@given(st.lists(requests, max_size=8, unique_by=lambda r: r.id), st.data())
def test_every_sample_enters_once_in_order_and_nothing_is_left_over(queue: list[Request], data: st.DataObject) -> None:
    scheduler = Scheduler(LIMITS)
    for r in queue:
        scheduler.submit(r)
    running: list[str] = []
    entered: list[tuple[str, int]] = []
    cancelled: set[str] = set()
    fresh: set[str] = set()
    while scheduler.waiting or running:
        for a in scheduler.admit():
            assert a.new == (a.request.id not in fresh)
            assert a.last == (a.first + a.count == a.request.params.n)
            fresh.add(a.request.id)
            entered += [(a.request.id, a.first + i) for i in range(a.count)]
            running += [a.request.id] * a.count
        assert len(running) == scheduler.running <= LIMITS.max_batch
        assert 0 <= scheduler.pages_reserved <= LIMITS.pages
        begun = Counter(name for name, _ in entered)
        assert scheduler.waiting == sum(r.params.n - begun[r.id] for r in queue if r.id not in cancelled)
        assert running, "with nothing running, something must be able to enter"
        if data.draw(st.integers(0, 9)) == 0:
            cancelled.add(victim := data.draw(st.sampled_from([r.id for r in queue])))
            scheduler.cancel(victim)
            for _ in range(running.count(victim)):
                running.remove(victim)
                scheduler.finished(victim)
        elif running:
            scheduler.finished(running.pop(data.draw(st.integers(0, len(running) - 1))))
    assert (scheduler.running, scheduler.pages_reserved, scheduler.waiting) == (0, 0, 0)
    counts = Counter(name for name, _ in entered)
    whole = [r for r in queue if r.id not in cancelled]
    assert all(counts[r.id] == r.params.n for r in whole)
    order = [r.id for r in queue if r.id in counts]
    assert list(dict.fromkeys(name for name, _ in entered)) == order
    for r in queue:
        assert [i for name, i in entered if name == r.id] == list(range(counts[r.id]))


def kept(family: str, number: int, n: int, prompt: int, new: int) -> Request:
    params = SamplingParams(n=n, max_tokens=new)
    return Request(f"{family}/{number}", tuple(range(prompt)), params, number, family, keep=True)


def test_requests_of_one_name_share_a_prompt_until_its_place_is_needed() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.submit(kept("a", 0, 2, 10, 10))
    (first,) = scheduler.admit()
    assert (first.new, first.last) == (True, False)
    scheduler.submit(kept("a", 2, 1, 10, 10))
    (second,) = scheduler.admit()
    assert (second.prompt, second.new, second.last) == (first.prompt, False, False)
    for name in ("a/0", "a/0", "a/2"):
        scheduler.finished(name)
    assert scheduler.unread() == []
    assert scheduler.pages_reserved == 1
    scheduler.submit(kept("a", 3, 1, 10, 10))
    (third,) = scheduler.admit()
    assert (third.prompt, third.new) == (first.prompt, False)
    scheduler.finished("a/3")
    scheduler.submit(request("large", n=8, prompt=40, new=40))  # 4 and 8 times 4 of 40 pages: 36 and the kept one fit
    scheduler.admit()
    assert scheduler.unread() == []
    for _ in range(8):
        scheduler.finished("large")
    scheduler.submit(request("whole", n=8, prompt=50, new=50))  # 5 and 7 times 5: all there are
    assert [a.count for a in scheduler.admit()] == [7]
    assert scheduler.unread() == [first.prompt]


def test_a_kept_prompt_that_is_waited_for_never_stands_in_the_way() -> None:
    """The first in the queue needs all pages; the one behind it had its prompt in, and prefills it again."""
    scheduler = Scheduler(LIMITS)
    scheduler.submit(kept("a", 0, 1, 10, 10))
    scheduler.admit()
    scheduler.submit(request("whole", n=2, prompt=90, new=10))
    scheduler.limits = Limits(8, 100, 10, 10, 64, 8)
    scheduler.submit(kept("a", 1, 1, 10, 10))
    assert scheduler.admit() == []
    scheduler.finished("a/0")
    (whole,) = scheduler.admit()
    assert (whole.request.id, whole.count, len(scheduler.unread())) == ("whole", 1, 1)
    for _ in range(2):
        scheduler.finished("whole")
        found = {a.request.id: a.new for a in scheduler.admit()}
    assert found == {"a/1": True}


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4), st.booleans()), max_size=30),
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=6, max_size=6),
    st.integers(1, 8),
    st.integers(13, 40),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
)
def test_prompts_are_opened_read_and_closed_in_that_order(
    asked: list[tuple[int, int, bool]], sizes: list[tuple[int, int]], prompts: int, pages: int, together: int, rng: Any
) -> None:
    """Whatever is asked, kept, cancelled: nobody reads a prompt that is not there, and none is forgotten."""
    limits = Limits(8, 120, pages, page=10, prefill_tokens=64, prompts=prompts, together=together)
    scheduler = Scheduler(limits)
    ahead = [replace(kept(str(f), i, n, *sizes[f]), keep=keep) for i, (f, n, keep) in enumerate(asked)]
    entered: Counter[str] = Counter()
    running: list[str] = []
    cancelled: set[str] = set()
    there: set[str] = set()
    while ahead or scheduler.waiting or running:
        while ahead and rng.random() < 0.5:
            scheduler.submit(ahead.pop(0))
        admissions = scheduler.admit()
        there -= set(scheduler.unread())
        for a in admissions:
            assert a.new == (a.prompt not in there)
            there.add(a.prompt)
        assert len(there) <= prompts + 8
        for a in admissions:
            if a.last:
                there.remove(a.prompt)
            entered[a.request.id] += a.count
            running += [a.request.id] * a.count
        assert len(running) == scheduler.running <= limits.max_batch
        assert 0 <= scheduler.pages_reserved <= limits.pages
        assert running or not scheduler.waiting, "with nothing running, something must be able to enter"
        if running and rng.random() < 0.15:
            cancelled.add(victim := rng.choice(running))
            scheduler.cancel(victim)
            for _ in range(running.count(victim)):
                running.remove(victim)
                scheduler.finished(victim)
        elif running:
            scheduler.finished(running.pop(rng.randrange(len(running))))
        closed = scheduler.unread()
        assert set(closed) <= there
        there -= set(closed)
    assert all(entered[f"{f}/{i}"] == n for i, (f, n, _) in enumerate(asked) if f"{f}/{i}" not in cancelled)
    assert len(there) <= max(prompts - 1, 0)  # those that are kept, and their pages
    assert scheduler.pages_reserved == sum(-(-sizes[int(key.partition(":")[0])][0] // 10) for key in there)


def test_in_turns_every_request_has_a_sample_before_any_has_two() -> None:
    scheduler = Scheduler(LIMITS, fair=True)
    for name, n in (("a", 9), ("b", 9), ("c", 1)):
        scheduler.submit(request(name, n=n, prompt=4, new=6))
    entered = {a.request.id: (a.first, a.count, a.new, a.last) for a in scheduler.admit()}
    assert entered == {"a": (0, 4, True, False), "b": (0, 3, True, False), "c": (0, 1, True, True)}
    scheduler.finished("c")
    (next_one,) = scheduler.admit()
    assert (next_one.request.id, next_one.first, next_one.count, next_one.new) == ("b", 3, 1, False)
    scheduler.cancel("a")
    for _ in range(4):
        scheduler.finished("a")
    (rest,) = scheduler.admit()
    assert (rest.request.id, rest.first, rest.count, rest.last) == ("b", 4, 4, False)


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 50)), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_in_turns_nothing_is_lost_and_nothing_gets_stuck(sizes: list[tuple[int, int, int]], rng: Any) -> None:
    """Many prompts kept open at once must never leave an empty engine without room for one row."""
    scheduler = Scheduler(LIMITS, fair=True)
    ahead = [request(str(i), n, prompt, new) for i, (n, prompt, new) in enumerate(sizes)]
    wanted = Counter({r.id: r.params.n for r in ahead})
    entered: Counter[str] = Counter()
    running: list[str] = []
    while ahead or scheduler.waiting or running:
        while ahead and scheduler.wants_more:
            scheduler.submit(ahead.pop(0))
        admissions = scheduler.admit()
        assert scheduler.pages_reserved <= LIMITS.pages
        for a in admissions:
            assert a.first == entered[a.request.id]
            assert a.new == (a.first == 0)
            entered[a.request.id] += a.count
            running += [a.request.id] * a.count
        assert len(running) == scheduler.running <= LIMITS.max_batch
        assert running
        rng.shuffle(running)
        for _ in range(rng.randint(1, len(running))):
            scheduler.finished(running.pop())
    assert entered == wanted
    assert scheduler.pages_reserved == 0
