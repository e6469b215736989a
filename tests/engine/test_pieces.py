"""Prompts longer than may be prefilled between two steps: a step behind every piece, and nothing else is different."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from toy_models import engine, loaded

from thinkfast.engine.cache import PAGE, PromptHandle, Usage
from thinkfast.engine.llm import LLM
from thinkfast.engine.pages import Ints
from thinkfast.engine.request import Chain, Request, SamplingParams
from thinkfast.engine.session import pieces

PARAMS = SamplingParams(temperature=0.9, max_tokens=40, seed=1, ignore_eos=True)
EMPTY = Usage(0, 0, 0, 0)
Doing = Callable[[LLM, list[int]], None]


def prompt(length: int, salt: int = 0) -> tuple[int, ...]:
    return tuple((7 * i + salt) % 60 + 4 for i in range(length))


def request(who: str, length: int, n: int = 1, **more: Any) -> Request:
    return Request(who, prompt(length, len(who)), replace(PARAMS, n=n), **more)


def watched(llm: LLM, monkeypatch: pytest.MonkeyPatch, doing: Doing = lambda llm, events: None) -> list[int]:
    """What the runner is asked for: 0 for a step, else the tokens of a prefill, those of a piece behind another less
    than 0. ``doing`` is called before each.
    """
    runner, events = llm._runner, list[int]()
    step, prefill, extend = runner.step, runner.prefill, runner.extend

    def one_step() -> Ints:
        events.append(0)
        doing(llm, events)
        return step()

    def first(prompts: Sequence[Sequence[int]]) -> list[PromptHandle]:
        events.append(sum(map(len, prompts)))
        doing(llm, events)
        return prefill(prompts)

    def further(handle: PromptHandle, tokens: Sequence[int]) -> PromptHandle:
        events.append(-len(tokens))
        doing(llm, events)
        return extend(handle, tokens)

    for name, does in (("step", one_step), ("prefill", first), ("extend", further)):
        monkeypatch.setattr(runner, name, does)
    return events


def said(chains: Sequence[Chain]) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(chain.request, chain.index): chain.tokens for chain in chains}


@pytest.mark.parametrize(
    ("length", "most", "sizes"),
    [
        (64, 64, [64]),
        (65, 64, [64, 1]),
        (63, 64, [63]),
        (300, 299, [192, 108]),
        (300, 128, [128, 128, 44]),
        (257, 200, [192, 65]),
        (256, 200, [128, 128]),
        (100, 1, [64, 36]),
        (20_000, 8192, [6720, 6720, 6560]),
    ],
)
def test_pieces_are_whole_pages_of_about_one_size(length: int, most: int, sizes: list[int]) -> None:
    whole = prompt(length)
    found = pieces(whole, most)
    assert [len(piece) for piece in found] == sizes
    assert sum(found, ()) == whole
    assert all(size % PAGE == 0 for size in sizes[:-1])
    assert max(sizes) <= max(most, PAGE)


@pytest.mark.parametrize("fair", [False, True])
def test_chains_are_those_of_whole_prompts(kind: str, fair: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """More samples than rows, prompts that have a row of their own and such that are shared."""
    requests = [request("a", 90, 3), request("bb", 5), request("ccc", 300, 7), request("d", 130), request("ee", 129, 2)]
    want = list(engine(kind, max_batch=4).stream(requests, fair=fair))
    llm = LLM(loaded(kind), 4, 400, prefill_tokens=64)
    events = watched(llm, monkeypatch)
    found = list(llm.stream(requests, fair=fair))
    assert said(found) == said(want)
    assert len(said(found)) == 14
    assert sorted(tokens for tokens in events if tokens < 0) == [-64] * 5 + [-44, -26, -2, -1]
    assert llm._runner.usage == EMPTY
    assert llm.stats.prefill_tokens == sum(len(one.prompt) for one in requests)


def test_rows_that_run_step_behind_every_piece_and_nobody_enters_before(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(loaded("hybrid"), 24, 400, prefill_tokens=64)
    events = watched(llm, monkeypatch)
    requests = [request("short", 5), request("long", 300, 2), request("other", 6)]
    list(llm.stream(requests))
    assert events[:11] == [5, 0, 64, 0, -64, 0, -64, 0, -64, 0, -44]
    assert events[11:14] == [0, 6, 0]
    assert llm.stats.longest_prefill < llm.stats.prefill_seconds


def test_every_piece_is_told_by_its_own_time_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some steps later, two at once."""
    llm = LLM(loaded("hybrid"), 24, 400, prefill_tokens=64)
    runner, handles = llm._runner, list[PromptHandle]()
    prefill, extend = runner.prefill, runner.extend

    def first(prompts: Sequence[Sequence[int]]) -> list[PromptHandle]:
        found = prefill(prompts)
        handles.append(found[0])
        return found

    def further(handle: PromptHandle, tokens: Sequence[int]) -> PromptHandle:
        handles.append(extend(handle, tokens))
        return handles[-1]

    def prefilled() -> dict[PromptHandle, float]:
        told = dict.fromkeys(handles, 50.0) if len(handles) % 2 == 0 else {}
        if told:
            handles.clear()
        return told

    for name, does in (("prefill", first), ("extend", further), ("prefilled", prefilled)):
        monkeypatch.setattr(runner, name, does)
    list(llm.stream([request("short", 5), request("long", 300)]))
    assert llm.stats.prefill_seconds == pytest.approx(6 * 50)
    assert llm.stats.longest_prefill == 50


@pytest.mark.parametrize("n", [1, 2, 30])
@pytest.mark.parametrize("keep", [False, True])
def test_who_is_cancelled_before_the_last_piece_never_was(n: int, keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer samples than rows, and with more; one whose prompt stays for others goes on for them."""
    requests = [request("short", 5, 3), request("long", 300, n, name="long", keep=keep), request("other", 70, 2)]
    follows = Request("again", requests[1].prompt, replace(PARAMS, n=2), 50, "long", keep)
    want = said(list(engine("hybrid", max_batch=8).stream([requests[0], requests[2], follows])))

    def cancel(llm: LLM, events: list[int]) -> None:
        if events.count(-64) == 2:
            llm.cancel("long")

    llm = LLM(loaded("hybrid"), 8, 400, prefill_tokens=64)
    events = watched(llm, monkeypatch, cancel)
    found = list(llm.stream([*requests, follows]))
    assert said(found) == want
    assert {chain.finish for chain in found} == {"length"}
    # Two pieces of five for nothing, or one prompt for both; with 30 samples the other was not asked for yet.
    assert events.count(-64) == (3 if keep and n < 30 else 5)
    assert events.count(-44) == 1
    assert llm._runner.usage == EMPTY


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("cancels", [False, True])
def test_samples_of_others_that_came_up_beside_a_long_prompt_do_not_wait_for_it(
    fair: bool, cancels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that became free go to the long prompt and to one that has begun, which is there."""
    requests = [request("short", 5, 12), request("long", 300, 2)]
    want = said(list(engine("hybrid", max_batch=5).stream(requests[:1] if cancels else requests, fair=fair)))
    running: list[tuple[int, int]] = []

    def cancel(llm: LLM, events: list[int]) -> None:
        if events[-1] == 0 and 0 < -sum(size for size in events if size < 0) < 64 * 3:
            session = llm._session
            assert session is not None
            running.append((llm.running - len(session._lineup), len(session._lineup)))
        if cancels and events.count(-64) == 1:
            llm.cancel("long")

    llm = LLM(loaded("hybrid"), 5, 400, prefill_tokens=64)
    watched(llm, monkeypatch, cancel)
    assert said(list(llm.stream(requests, fair=fair))) == want
    # While pieces come, as many samples wait for them as could enter, and others have entered.
    assert running[0][0] in (1, 2)
    assert running[0][1] > 0
    assert llm._runner.usage == EMPTY


def test_a_sample_that_is_cancelled_before_it_is_there_ends_when_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel(llm: LLM, events: list[int]) -> None:
        if events.count(-64) == 1:
            llm.cancel("long", 1)

    llm = LLM(loaded("hybrid"), 8, 400, prefill_tokens=64)
    watched(llm, monkeypatch, cancel)
    found = {chain.index: chain for chain in llm.stream([request("long", 300, 3)])}
    assert {index: chain.finish for index, chain in found.items()} == {0: "length", 1: "cancelled", 2: "length"}
    assert len(found[1].tokens) <= 2
    assert llm._runner.usage == EMPTY


def test_rows_and_pages_of_a_cancelled_prompt_are_free_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight rows as before; one whose prompt is kept, and nobody else's, is given up."""
    rooms: list[int] = []

    def cancel(llm: LLM, events: list[int]) -> None:
        if events.count(-64) == 1:
            llm.cancel("long")
            llm.cancel("many")
        if events[-1] == 0:
            rooms.append(llm.room + llm.running)

    llm = LLM(loaded("hybrid"), 8, 400, prefill_tokens=64)
    events = watched(llm, monkeypatch, cancel)
    requests = [request("short", 5), request("many", 6, 2), request("long", 300, 5, name="long", keep=True)]
    found = list(llm.stream(requests))
    assert {chain.request for chain in found} == {"short", "many"}
    assert events.count(-64) == 1
    assert rooms[-1] == 8
    assert len(list(llm.stream([request("all", 20, 8)]))) == 8
    assert llm._runner.usage == EMPTY


def test_a_prompt_goes_on_growing_when_another_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelling a request whose samples have begun and not all of them closes its prompt; this one is not it."""
    ahead = iter([request("many", 6, 30), None, request("long", 300)])

    def cancel(llm: LLM, events: list[int]) -> None:
        if events.count(-64) == 1:
            llm.cancel("many")

    llm = LLM(loaded("hybrid"), 8, 400, prefill_tokens=64)
    events = watched(llm, monkeypatch, cancel)
    chains = list(llm.stream(ahead, fair=True))
    assert [chain.finish for chain in chains if chain.request == "long"] == ["length"]
    assert {chain.finish for chain in chains if chain.request == "many"} >= {"cancelled"}
    assert events.count(-64) == 3


def test_pieces_are_timed_though_no_step_follows(kind: str) -> None:
    llm = LLM(loaded(kind), 8, 400, prefill_tokens=64)
    assert list(llm.stream([request("long", 300)], seconds=1e-9)) == []
    assert llm.stats.steps == 0
    assert llm.stats.longest_prefill == pytest.approx(llm.stats.prefill_seconds)


def test_a_long_prompt_may_come_alone(kind: str) -> None:
    llm = LLM(loaded(kind), 8, 400, prefill_tokens=64)
    assert [len(chain.tokens) for chain in llm.stream([request("long", 300)])] == [40]


def test_a_deadline_between_two_pieces_holds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(llm: LLM, events: list[int]) -> None:
        time.sleep(0.3 * (events[-1] < 0))

    llm = LLM(loaded(kind), 8, 400, prefill_tokens=64)
    events = watched(llm, monkeypatch, sleep)
    endless = Request("short", prompt(5), replace(PARAMS, max_tokens=390))
    chains = list(llm.stream([endless, request("long", 300, 2)], seconds=0.5))
    assert [(chain.request, chain.finish) for chain in chains] == [("short", "deadline")]
    assert events.count(-64) == 2
    assert llm.stats.longest_prefill > 0.29
    assert llm._runner.usage == EMPTY


def test_a_piece_that_is_broken_off_leaves_nothing_behind(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when memory runs out, or a user has waited enough."""

    def break_off(llm: LLM, events: list[int]) -> None:
        if events.count(-64) == 2:
            raise KeyboardInterrupt

    llm = LLM(loaded(kind), 8, 400, prefill_tokens=64)
    requests = [request("short", 5), request("long", 300, 2)]
    with monkeypatch.context() as patch:
        watched(llm, patch, break_off)
        with pytest.raises(KeyboardInterrupt):
            list(llm.stream(requests))
    assert llm._runner.usage == EMPTY
    assert said(list(llm.stream(requests))) == said(list(engine(kind, max_batch=8).stream(requests)))
