from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from toy_models import EOS, SPECS, engine, loaded, reference_logprobs

from thinkfast.engine import runner as runner_module
from thinkfast.engine.cache import PromptHandle, Usage
from thinkfast.engine.llm import LLM
from thinkfast.engine.request import Chain, Request, SamplingParams
from thinkfast.engine.rng import sample_key, uniform
from thinkfast.engine.session import Stats
from thinkfast.errors import CapacityError, InputError

EMPTY = Usage(0, 0, 0, 0)
SAMPLED = SamplingParams(temperature=0.9, max_tokens=60, logprobs=True, seed=1, ignore_eos=True)


def prompt(length: int, salt: int = 0) -> list[int]:
    return [(7 * i + salt) % 60 + 4 for i in range(length)]


def tokens(chains: list[list[Chain]]) -> list[list[tuple[int, ...]]]:
    return [[chain.tokens for chain in row] for row in chains]


def with_params(base: SamplingParams, **changes: object) -> SamplingParams:
    fields = {name: getattr(base, name) for name in SamplingParams.__slots__}
    return SamplingParams(**{**fields, **changes})


@pytest.mark.parametrize("n", [1, 3])
def test_prefill_and_steps_equal_the_full_forward(kind: str, n: int) -> None:
    """Logits of every position, and the very tokens that the reference logits and the counters give."""
    llm = engine(kind)
    prompts = [prompt(length) for length in (1, 2, 3, 4, 5, 63, 64, 65, 130)]
    params = with_params(SAMPLED, n=n, max_tokens=80)
    for number, (p, chains) in enumerate(zip(prompts, llm.generate(prompts, params), strict=True)):
        assert [chain.index for chain in chains] == list(range(n))
        for chain in chains:
            reference = reference_logprobs(llm.loaded.model, p, chain.tokens)
            found = torch.tensor(chain.logprobs)
            torch.testing.assert_close(found, reference[range(80), chain.tokens], atol=1e-4, rtol=0)
            probs = (reference / params.temperature).softmax(-1).cumsum(-1)
            key = sample_key(params.seed, str(number), chain.index)
            u = uniform(torch.full((80,), key), torch.arange(80))
            # Where the uniform lies within rounding of a boundary, either neighbour is right.
            near = (probs - u[:, None]).abs().min(-1).values < 1e-5
            want = torch.searchsorted(probs, u[:, None], right=True).squeeze(1)
            assert (near | (want == torch.tensor(chain.tokens))).all()
            assert chain.logprob == pytest.approx(sum(chain.logprobs or ()))
            assert (chain.finish, chain.prompt_tokens, len(chain.tokens)) == ("length", len(p), 80)


def test_weights_in_eight_bits_decode_as_their_own_forward(kind: str) -> None:
    """The same rounding of the same rows in prefill, step and forward; an input on an edge may fall to either side."""
    llm = LLM(loaded(kind), 4, 200, fp8_weights=True)
    assert llm.step_path == "torch"
    assert llm.plan.weight_bytes < engine(kind).plan.weight_bytes
    p = prompt(37)
    for chain in llm.generate([p], with_params(SAMPLED, n=3, max_tokens=80))[0]:
        found = torch.tensor(chain.logprobs)
        own, exact = (reference_logprobs(one.loaded.model, p, chain.tokens) for one in (llm, engine(kind)))
        off = (found - own[range(80), chain.tokens]).abs()
        rounding = (own - exact)[range(80), chain.tokens].abs()
        assert off.median() < 1e-3
        assert off.mean() < 0.2 * rounding.mean()


def test_a_fork_equals_independent_prefills(kind: str) -> None:
    llm = engine(kind)
    p, params = tuple(prompt(70)), with_params(SAMPLED, n=6)
    forked = list(llm.stream([Request("q", p, params)]))
    single = with_params(params, n=1)
    alone = [next(iter(list(llm.stream([Request("q", p, single, first_index=i)])))) for i in range(6)]
    assert sorted((c.index, c.tokens) for c in forked) == [(c.index, c.tokens) for c in alone]
    assert len({c.tokens for c in alone}) == 6


def test_a_ragged_batch_equals_batches_of_one(kind: str) -> None:
    prompts = [prompt(length, salt=length) for length in (1, 2, 3, 4, 5, 40, 64, 100)]
    params = with_params(SAMPLED, n=2, ignore_eos=False)
    together = engine(kind, max_batch=5).generate(prompts, params)
    assert {len(c.tokens) for row in together for c in row} != {60}, "rows should leave at different times"
    alone = list(engine(kind, max_batch=1).stream(Request(str(i), tuple(p), params) for i, p in enumerate(prompts)))
    for i, row in enumerate(together):
        assert [c.tokens for c in row] == [c.tokens for c in alone if c.request == str(i)]


def test_the_same_call_gives_the_same_bits(kind: str) -> None:
    prompts = [prompt(length) for length in (3, 20, 90)]
    params = with_params(SAMPLED, n=5, ignore_eos=False)
    llm = engine(kind, max_batch=4)
    first = [[(c.tokens, c.logprobs, c.finish) for c in row] for row in llm.generate(prompts, params)]
    again = [[(c.tokens, c.logprobs, c.finish) for c in row] for row in llm.generate(prompts, params)]
    other = [[(c.tokens, c.logprobs, c.finish) for c in row] for row in engine(kind, 4).generate(prompts, params)]
    assert first == again == other
    assert first != [
        [(c.tokens, c.logprobs, c.finish) for c in row] for row in llm.generate(prompts, with_params(params, seed=2))
    ]


def test_greedy_is_the_argmax_of_the_reference(kind: str) -> None:
    llm = engine(kind)
    for params in (SamplingParams(temperature=0, max_tokens=30), SamplingParams(temperature=3, top_k=1, max_tokens=30)):
        for row in llm.generate([prompt(9), prompt(4)], with_params(params, ignore_eos=True, n=2)):
            assert row[0].tokens == row[1].tokens
        reference = reference_logprobs(llm.loaded.model, prompt(4), row[0].tokens)
        assert tuple(reference.argmax(-1).tolist()) == row[0].tokens


def test_end_of_sequence_is_kept_in_the_tokens_and_not_in_the_text() -> None:
    llm = engine("teacher")
    params = SamplingParams(n=24, temperature=1.5, max_tokens=100)
    (chains,) = llm.generate([prompt(5)], params)
    stopped = [c for c in chains if c.finish == "stop"]
    assert 5 < len(stopped) < 24
    for chain in chains:
        assert EOS not in chain.tokens[:-1]
        assert (chain.tokens[-1] == EOS) == (chain.finish == "stop")
        assert chain.text == "".join(chr(48 + t) for t in chain.tokens if t != EOS)
    (forced,) = llm.generate([prompt(5)], with_params(params, ignore_eos=True))
    assert {len(c.tokens) for c in forced} == {100}
    for chain, whole in zip(chains, forced, strict=True):
        assert whole.tokens[: len(chain.tokens)] == chain.tokens


def test_chains_whose_text_nobody_wants_are_the_same_without_it() -> None:
    """In one batch with others that end at the same steps."""
    llm = engine("teacher")
    params = with_params(SAMPLED, n=3, ignore_eos=False)
    asked = [Request(name, tuple(prompt(5)), params) for name in ("a", "b")]
    want = {(c.request, c.index): c for c in llm.stream(asked)}
    mixed = [asked[0], replace(asked[1], params=with_params(params, detokenize=False))]
    for chain in llm.stream(mixed):
        expected = want[chain.request, chain.index]
        assert chain.tokens == expected.tokens
        assert chain.text == (expected.text if chain.request == "a" else "")
        assert expected.text


@pytest.mark.parametrize("stop", [("A",), ("AB", "k"), ("xyz", "A", "9")])
def test_stop_strings_cut_the_text_at_the_first(stop: tuple[str, ...]) -> None:
    llm = engine("teacher")
    params = with_params(SAMPLED, n=20, max_tokens=150)
    (free,) = llm.generate([prompt(5)], params)
    (cut,) = llm.generate([prompt(5)], with_params(params, stop=stop))
    hit = 0
    for whole, chain in zip(free, cut, strict=True):
        places = [whole.text.find(s) for s in stop if s in whole.text]
        if not places:
            assert (chain.text, chain.finish) == (whole.text, "length")
            continue
        hit += 1
        assert (chain.text, chain.finish) == (whole.text[: min(places)], "stop")
        assert chain.tokens == whole.tokens[: len(chain.tokens)]
        said = "".join(chr(48 + t) for t in chain.tokens if t != EOS)
        assert any(said.endswith(s) for s in stop), "it ended later than it had to"
    assert hit


def test_one_token_and_one_free_token_of_room() -> None:
    llm = engine("hybrid", max_len=50)
    ((one,),) = llm.generate([prompt(5)], with_params(SAMPLED, max_tokens=1))
    assert (len(one.tokens), one.finish) == (1, "length")
    ((full,),) = llm.generate([prompt(49)], SAMPLED)
    assert (len(full.tokens), full.finish) == (1, "length")
    assert llm._runner.usage == EMPTY


def test_queued_samples_enter_when_rows_leave() -> None:
    llm = engine("teacher", max_batch=4)
    rows = []
    step = llm._runner.step

    def watched() -> object:
        rows.append(llm._runner.usage.rows)
        return step()

    llm._runner.step = watched  # type: ignore[method-assign]
    llm.generate([prompt(5), prompt(8), prompt(90)], with_params(SAMPLED, n=7, ignore_eos=False, temperature=1.5))
    # The batch is full at every step until the queue is empty; then it only shrinks.
    assert rows[: rows.index(3)] == [4] * rows.index(3)
    assert all(a >= b for a, b in itertools.pairwise(rows))


def test_cancel_ends_one_request_and_no_other(kind: str) -> None:
    llm = engine(kind, max_batch=4)
    params = with_params(SAMPLED, n=3, max_tokens=40)
    expected = tokens(llm.generate([prompt(5), prompt(6), prompt(7)], params))
    found: list[Chain] = []
    requests = [Request(str(i), tuple(prompt(5 + i)), params) for i in range(3)]
    requests.insert(0, Request("long", tuple(prompt(66)), with_params(params, n=9, max_tokens=300)))
    stream = llm.stream(requests)
    watchdog = iter(range(10_000))
    step = llm._runner.step

    def cancel_at_step_twenty() -> object:
        if next(watchdog) == 20:
            llm.cancel("long")
            llm.cancel("unknown")
        return step()

    llm._runner.step = cancel_at_step_twenty  # type: ignore[method-assign]
    found = list(stream)
    gone = [c for c in found if c.request == "long"]
    assert [(c.finish, len(c.tokens)) for c in gone] == [("cancelled", 22)] * 4
    assert all(c.finish == "length" for c in found if c.request != "long")
    for i in range(3):
        mine = sorted((c for c in found if c.request == str(i)), key=lambda c: c.index)
        assert [c.tokens for c in mine] == expected[i]
    assert llm._runner.usage == EMPTY


@pytest.mark.parametrize("where", ["prefill", "fork", "draw", "step"])
@pytest.mark.parametrize("n", [1, 3])
def test_memory_that_runs_out_ends_in_the_plan_and_frees_what_was_in_flight(
    where: str, n: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork may fail before it has begun, or (draw) when its rows are there."""
    llm = engine(kind, max_batch=2)
    params = with_params(SAMPLED, n=n, max_tokens=20)
    prompts = [prompt(5), prompt(6), prompt(7)]
    expected = tokens(llm.generate(prompts, params))
    place: Any = runner_module if where == "draw" else llm._runner
    whole, calls = getattr(place, where), iter(range(10_000))

    def short(*arguments: object) -> object:
        if next(calls) == 1:
            raise torch.OutOfMemoryError("no memory")
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(place, where, short)
        with pytest.raises(CapacityError, match="memory ran out, though the plan had room: 2 rows") as told:
            llm.generate(prompts, params)
    assert "max_batch" in told.value.remedy
    assert llm._runner.usage == EMPTY
    assert tokens(llm.generate(prompts, params)) == expected


def test_what_is_prepared_says_the_same(kind: str) -> None:
    llm, other = engine(kind), engine(kind)
    for params in (SAMPLED, with_params(SAMPLED, top_k=5, stop=("a",))):
        llm.prepare(params)
        assert llm._runner.usage == EMPTY
        assert llm.stats == Stats()
        assert tokens(llm.generate([prompt(5)], params)) == tokens(other.generate([prompt(5)], params))
        llm.stats = Stats()


def test_cancel_from_another_thread() -> None:
    llm = engine("pure", max_batch=2, max_len=50_000)

    def cancel() -> None:
        while not llm.running:
            time.sleep(0.001)
        llm.cancel("0")

    threading.Thread(target=cancel, daemon=True).start()
    # Rows in step end together, so chains have to be too long to end just when they are cancelled.
    (chains,) = llm.generate([prompt(1)], with_params(SAMPLED, n=10_000, max_tokens=49_000))
    assert [c.finish for c in chains] == ["cancelled"] * 2


def test_a_deadline_is_kept_and_everything_so_far_comes_back(kind: str) -> None:
    llm = engine(kind, max_batch=8, max_len=1000)
    params = with_params(SAMPLED, n=100, max_tokens=900)
    llm.generate([prompt(5)], with_params(params, max_tokens=3))
    llm.stats.decode_seconds, llm.stats.steps = 0.0, 0
    late, runs = [], []
    for _ in range(3):  # others use this machine too, so the median decides
        began = time.monotonic()
        (chains,) = llm.generate([prompt(5)], params, seconds=0.3)
        took = time.monotonic() - began
        assert took >= 0.3
        late.append(took - 0.3 - 10 * llm.stats.decode_seconds / llm.stats.steps)
        runs.append(([c for c in chains if c.finish == "deadline"], took))
    assert sorted(late)[1] < 0.05
    # A process that was stopped for all of its seconds has begun nothing.
    running, took = max(runs, key=lambda run: len(run[0]))
    assert len(running) == 8
    assert all(0.3 <= c.seconds <= took for c in running)
    assert all(c.tokens and len(c.text) == sum(t != EOS for t in c.tokens) for c in running)
    assert llm._runner.usage == EMPTY
    (free,) = llm.generate([prompt(5)], with_params(params, n=8, max_tokens=max(len(c.tokens) for c in running)))
    for chain in running[:8]:
        if chain.index < 8:
            assert free[chain.index].tokens[: len(chain.tokens)] == chain.tokens


def test_seconds_of_a_chain_count_from_the_call_and_include_waiting() -> None:
    llm = engine("pure", max_batch=1)
    began = time.monotonic()
    seen: list[tuple[Chain, float]] = []
    llm.generate(
        [prompt(5)] * 3, with_params(SAMPLED, n=2), on_chain=lambda c: seen.append((c, time.monotonic() - began))
    )
    assert len(seen) == 6
    apart = sorted(now - c.seconds for c, now in seen)
    assert apart[0] >= 0
    assert apart[3] < 0.05  # others use this machine too, so the median decides
    assert [c.seconds for c, _ in seen] == sorted(c.seconds for c, _ in seen)


def test_a_stream_draws_requests_as_room_appears_and_frees_all_when_closed() -> None:
    llm = engine("hybrid", max_batch=4)
    drawn = 0

    def endless() -> Iterator[Request]:
        nonlocal drawn
        while True:
            yield Request(str(drawn), tuple(prompt(5)), with_params(SAMPLED, n=2, max_tokens=1 + drawn))
            drawn += 1

    stream = llm.stream(endless())
    chains = [next(stream) for _ in range(9)]
    assert len({(c.request, c.index) for c in chains}) == 9
    assert drawn < 12
    with pytest.raises(InputError, match="open stream"):
        llm.generate([prompt(3)], SAMPLED)
    stream.close()  # type: ignore[attr-defined]
    assert llm._runner.usage == EMPTY
    assert llm.generate([prompt(3)], SAMPLED)[0][0].finish == "length"


def test_an_error_in_a_lazy_request_frees_what_runs() -> None:
    llm = engine("teacher", max_batch=4)
    requests = iter([Request("a", tuple(prompt(5)), SAMPLED), Request("b", (), SAMPLED)])
    with pytest.raises(InputError, match="'b' is empty"):
        list(llm.stream(requests))
    assert llm._runner.usage == EMPTY


def test_nan_in_one_rows_logits_ends_that_row_alone(kind: str) -> None:
    llm = engine(kind, max_batch=6)
    params = with_params(SAMPLED, n=3, max_tokens=40)
    prompts = [prompt(5), prompt(70)]
    expected = tokens(llm.generate(prompts, params))
    runner, calls = llm._runner, itertools.count()
    runner.decode.native = None  # torch's step can be reached into
    logits = llm.loaded.model.logits

    def poisoned(hidden: torch.Tensor) -> torch.Tensor:
        out = logits(hidden)
        if next(calls) == 12:  # call 0 is the prefill's
            out[1, 5] = float("nan")
            out[4] = float("inf")
        return out

    llm.loaded.model.logits = poisoned  # type: ignore[method-assign]
    found = llm.generate(prompts, params)
    assert [[c.finish for c in row] for row in found] == [["length", "error", "length"]] * 2
    for row, want in zip(found, expected, strict=True):
        assert (row[0].tokens, row[2].tokens) == (want[0], want[2])
        assert row[1].tokens == want[1][:12]
        assert math.isfinite(row[1].logprob)
    assert llm._runner.usage == EMPTY


@pytest.mark.parametrize("where", ["prompt", "state"])
def test_nan_in_the_cache_stays_in_its_row(kind: str, where: str) -> None:
    """A poisoned embedding makes keys, values and states NaN; who never sees the token never notices."""
    llm = engine(kind, max_batch=6)
    params = with_params(SAMPLED, n=2, max_tokens=100)
    clean = [p for p in (prompt(5), prompt(70)) if 4 not in p[:2]]
    expected = tokens(llm.generate(clean, params))
    llm.loaded.model.embed.weight[63] = float("nan")
    weight = llm.loaded.model.embed.weight.clone()
    llm.loaded.model.logits = lambda hidden: hidden @ weight.nan_to_num(0.0).T  # type: ignore[method-assign]
    poison = [63] * 70 if where == "prompt" else [20, 63]
    found = llm.generate([*clean, poison], params)
    assert {c.finish for c in found[-1]} == {"error"}
    seen = [c for row in found[:-1] for c in row if 63 in c.tokens]
    assert all(c.finish == "error" for c in seen if c.tokens[-1] != 63)
    for row, want in zip(found, expected, strict=False):
        for chain, w in zip(row, want, strict=True):
            if 63 not in w:
                assert (chain.tokens, chain.finish) == (w, "length")


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), -math.inf])
def test_a_budget_must_be_positive(seconds: float) -> None:
    with pytest.raises(InputError, match="budget must be positive"):
        engine("pure").generate([prompt(3)], SAMPLED, seconds=seconds)


def test_a_budget_must_be_a_number() -> None:
    with pytest.raises(InputError, match="seconds is '5'"):
        engine("pure").generate([prompt(3)], SAMPLED, seconds=cast(Any, "5"))


@pytest.mark.parametrize(
    "bad",
    [
        {"n": 0},
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"top_k": -1},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"stop": ("",)},
        {"stop": "x"},
        {"stop": ("x",), "detokenize": False},
        {"n": 1.5},
        {"max_tokens": "4"},
        {"top_k": None},
        {"seed": 0.5},
        {"temperature": "1"},
        {"top_p": None},
        {"min_p": [0]},
    ],
    ids=str,
)
def test_sampling_parameters_are_checked(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))) as caught:
        with_params(SAMPLED, **bad)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ([], "empty"),
        ("", "prompt 1 is empty"),
        (" \n", "prompt 1 is empty"),
        (prompt(400), "400 tokens and max_len is 400"),
        ([5, 64], "token 64"),
        ([-1], "token -1"),
        (7, "prompt 1 is 7"),
        (["5"], "prompt 1 is \\['5'\\]"),
        ([1.5], "prompt 1 is \\[1.5\\]"),
    ],
)
def test_a_bad_prompt_is_refused_before_anything_runs(bad: list[int] | str, match: str) -> None:
    llm = engine("teacher")
    with pytest.raises(InputError, match=match):
        llm.generate([prompt(3), bad], SAMPLED)
    assert llm.stats.prefill_tokens == 0
    assert llm.generate([prompt(3)], SAMPLED)


def test_one_text_is_not_taken_for_a_list_of_letters() -> None:
    with pytest.raises(InputError, match="prompts is one text"):
        engine("teacher").generate("What?", SAMPLED)


def test_tokens_may_be_of_other_libraries() -> None:
    llm = engine("teacher")
    prompts = cast(Any, [prompt(7), torch.tensor(prompt(7)), np.array(prompt(7))])
    found = llm.generate(prompts, with_params(SAMPLED, n=1, temperature=0))
    assert len({chain.tokens for (chain,) in found}) == 1


def test_what_is_no_request_is_refused() -> None:
    with pytest.raises(InputError, match="'hello' is no Request"):
        list(engine("teacher").stream(cast(Any, ["hello"])))


def test_text_prompts_go_through_the_chat_template() -> None:
    llm = engine("teacher")
    ((a,), (b,)) = llm.generate(["What?", llm.tokenizer.chat("What?")], with_params(SAMPLED, temperature=0))
    assert a.tokens == b.tokens


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"max_batch": 0}, InputError, "max_batch is 0"),
        ({"max_len": 1}, InputError, "max_len is 1"),
        ({"max_len": 1025}, InputError, "made for 1024 positions"),
        ({"max_batch": 10**9}, CapacityError, "does not fit"),
        ({"max_batch": 2.5}, InputError, "max_batch is 2.5"),
        ({"max_len": "400"}, InputError, "max_len is '400'"),
        ({"prefill_tokens": 64.5}, InputError, "prefill_tokens is 64.5"),
    ],
)
def test_sizes_are_checked(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        LLM(loaded("teacher"), **arguments)


def test_a_model_without_attention_has_no_limit_of_positions() -> None:
    llm = LLM(loaded("pure"), max_batch=2, max_len=1500)
    ((chain,),) = llm.generate([prompt(5)], with_params(SAMPLED, max_tokens=1200))
    assert len(chain.tokens) == 1200


def test_stats_count_everything_once() -> None:
    llm = engine("hybrid", max_batch=4)
    chains = llm.generate([prompt(5), prompt(9)], with_params(SAMPLED, n=3, ignore_eos=False))
    assert llm.stats.generated_tokens == sum(len(c.tokens) for row in chains for c in row)
    assert llm.stats.prefill_tokens == 14
    assert 0 < llm.stats.longest_prefill <= llm.stats.prefill_seconds
    assert 0 < llm.stats.decode_seconds
    assert llm.stats.tokens_per_second > 0


def test_prompts_between_two_steps_are_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """For those that are longer see test_pieces.py."""
    llm, sizes = LLM(loaded("hybrid"), 8, 400, prefill_tokens=64), []
    run = llm._runner.prefill

    def prefill(prompts: Sequence[Sequence[int]]) -> list[PromptHandle]:
        sizes.append(sum(map(len, prompts)))
        return run(prompts)

    monkeypatch.setattr(llm._runner, "prefill", prefill)
    llm.generate([prompt(n) for n in (30, 30, 30, 64, 5)], SAMPLED)
    assert sizes == [60, 30, 64, 5]
    for tokens in (0, -1, 10**9):
        with pytest.raises(InputError, match=f"prefill_tokens is {tokens}"):
            LLM(loaded("hybrid"), 8, 400, prefill_tokens=tokens)


def test_a_prefill_that_goes_on_behind_the_host_is_not_counted_as_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device tells of its prefills later, by the first prompt; one of a run that was given up is nobody's."""
    llm = LLM(loaded("hybrid"), max_batch=4, max_len=128)
    runner, told = llm._runner, []
    run = runner.prefill

    def prefill(prompts: Sequence[Sequence[int]]) -> list[PromptHandle]:
        handles = run(prompts)
        told.append({handles[0]: 100.0, replace(handles[0], id=handles[0].id + 1000): 7.0})
        return handles

    monkeypatch.setattr(runner, "prefill", prefill)
    monkeypatch.setattr(runner, "prefilled", lambda: told.pop() if told else {})
    llm.generate([prompt(5), prompt(9)], with_params(SAMPLED, n=2))
    assert llm.stats.prefill_seconds == pytest.approx(100)
    assert llm.stats.longest_prefill == 100
    assert 0 < llm.stats.prefill_seconds + llm.stats.decode_seconds < 60


@pytest.mark.parametrize("most", [None, 64])
def test_random_streams_with_cancels_and_deadlines_leak_nothing(kind: str, most: int | None) -> None:
    """Prompts of up to 250 tokens, in one piece or in several."""
    llm = LLM(loaded(kind), 5, 320, prefill_tokens=most)
    rng = torch.Generator().manual_seed(3)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=rng))

    for round_number in range(24):
        requests = [
            Request(
                f"{i}",
                tuple(prompt(20 + i % 3 if round_number % 2 else pick(1, 250))),
                with_params(SAMPLED, n=pick(1, 8), max_tokens=pick(1, 60), ignore_eos=bool(pick(0, 2)), seed=i),
                name=str(i % 3) if round_number % 2 else "",
                keep=bool(round_number % 2),
            )
            for i in range(pick(1, 8))
        ]
        counts, wanted = {r.id: 0 for r in requests}, {r.id: r.params.n for r in requests}
        cancelled: set[str] = set()
        whole = round_number % 3 != 0
        stream = llm.stream(requests, seconds=None if whole else 0.05, fair=round_number % 5 > 2)
        for chain in stream:
            counts[chain.request] += 1
            if pick(0, 4) == 0:
                cancelled.add(victim := str(pick(0, 8)))
                llm.cancel(victim)
            if round_number % 4 == 3 and pick(0, 10) == 0:
                stream.close()  # type: ignore[attr-defined]
                whole = False
                break
        for name, count in counts.items():
            assert count <= wanted[name]
            assert count == wanted[name] or not whole or name in cancelled
        assert llm._runner.usage == EMPTY


@pytest.mark.parametrize("families", [3, 6])
def test_requests_that_keep_their_prompt_give_the_same_chains(kind: str, families: int) -> None:
    """Two samples at a time, chains of all lengths; six problems are more than this engine may keep."""
    llm = engine(kind, max_batch=5, max_len=250)
    found, prefilled = [], []
    for keep in (False, True):
        before = llm.stats.prefill_tokens
        requests = [
            Request(
                f"{family}/{turn}",
                tuple(prompt(60 + family, family)),
                with_params(SAMPLED, n=2, max_tokens=10 + 7 * ((family + turn) % 5)),
                2 * turn,
                str(family),
                keep,
            )
            for turn in range(4)
            for family in range(families)
        ]
        found.append({(c.request, c.index): c.tokens for c in llm.stream(iter(requests))})
        prefilled.append(llm.stats.prefill_tokens - before)
        assert llm._runner.usage == EMPTY
    assert found[0] == found[1]
    assert len(found[0]) == 8 * families
    once = sum(60 + family for family in range(families))
    assert prefilled == [4 * once, once] if families == 3 else once < prefilled[1] < prefilled[0]


def test_every_kind_has_a_plan_that_prints(kind: str) -> None:
    llm = engine(kind)
    text = str(llm.plan)
    assert "8 rows of up to 400 tokens" in text
    assert (llm.plan.kv_bytes > 0) == (SPECS[kind].n_attention > 0)
    assert (llm.plan.state_bytes > 0) == SPECS[kind].is_student


def test_an_iterator_may_have_nothing_yet() -> None:
    """What to begin next depends on what has finished: one request at a time, each asked for after the one before."""
    llm = engine("hybrid")
    done: list[str] = []
    asked: list[int] = []

    def requests() -> Iterator[Request | None]:
        for i in range(3):
            asked.append(len(done))
            yield Request(str(i), tuple(prompt(4)), SamplingParams(max_tokens=3 + i, ignore_eos=True))
            while len(done) <= i:
                assert llm.running in (0, 1)
                yield None

    for chain in llm.stream(requests()):
        done += [chain.request]
    assert (done, asked) == (["0", "1", "2"], [0, 1, 2])
    assert llm._runner.usage == EMPTY
    idle = llm.stream(iter(lambda: None, 0), seconds=0.05)
    assert list(idle) == []  # nothing, ever: the deadline ends it


def test_fair_streams_deal_rows_in_turns_and_draw_the_same_samples(kind: str) -> None:
    llm = engine(kind, max_batch=4)
    params = SamplingParams(n=5, max_tokens=12, seed=3, ignore_eos=True)
    requests = [Request(str(i), tuple(prompt(5, i)), params) for i in range(3)]
    by_turns = list(llm.stream(requests, fair=True))
    first_four = sorted((c.request, c.index) for c in by_turns[:4])
    assert first_four == [("0", 0), ("0", 1), ("1", 0), ("2", 0)]
    in_order = list(llm.stream(requests))
    assert {(c.request, c.index): c.tokens for c in by_turns} == {(c.request, c.index): c.tokens for c in in_order}
    assert llm._runner.usage == EMPTY


def test_one_sample_can_be_cancelled(kind: str) -> None:
    llm = engine(kind)
    params = SamplingParams(n=4, max_tokens=30, ignore_eos=True)
    stream = llm.stream([Request("a", tuple(prompt(6)), params), Request("b", tuple(prompt(6)), params)])
    short = Request("c", tuple(prompt(3)), SamplingParams(max_tokens=2, ignore_eos=True))
    stream.close()
    chains = []
    for chain in llm.stream([short, Request("a", tuple(prompt(6)), params)]):
        chains.append(chain)
        if chain.request == "c":
            llm.cancel("a", 2)
            llm.cancel("a", 77)
            llm.cancel("nobody", 0)
    ends = {(c.request, c.index): c.finish for c in chains}
    assert ends == {("c", 0): "length", ("a", 2): "cancelled", **{("a", i): "length" for i in (0, 1, 3)}}
    assert llm._runner.usage == EMPTY


def test_certainty_is_the_divergence_from_knowing_nothing(kind: str) -> None:
    llm = engine(kind)
    (chains,) = llm.generate([prompt(9)], with_params(SAMPLED, n=3, max_tokens=20))
    for chain in chains:
        reference = reference_logprobs(llm.loaded.model, prompt(9), chain.tokens).double()
        size = reference.shape[-1]
        by_the_book = (1 / size * (-math.log(size) - reference)).sum(-1).mean()
        assert chain.certainty == pytest.approx(float(by_the_book), abs=1e-4)
        assert chain.certainty > 0
