"""The captured runner on a GPU against the plain one on the CPU, token for token, and what must not leak or spread."""

from __future__ import annotations

import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

pytest.importorskip("triton", reason="CPU builds of torch come without triton")
sys.path.append(str(Path(__file__).parents[1]))

from toy_models import ToyTokenizer, random_model

from thinkfast.engine.cache import Usage
from thinkfast.engine.cuda.plan import make_cuda_plan
from thinkfast.engine.llm import LLM
from thinkfast.engine.plan import make_plan
from thinkfast.engine.request import Request, SamplingParams
from thinkfast.engine.rows import RowStart, Said
from thinkfast.engine.runner import Runner, Start
from thinkfast.engine.runners import AnyRunner, make_runner
from thinkfast.errors import CapacityError
from thinkfast.models.loading import Loaded
from thinkfast.models.spec import ModelSpec

pytestmark = pytest.mark.gpu

TEACHER = ModelSpec(64, 64, 6, 2, 16, 96, ("attention",) * 2, tie_embeddings=False, max_positions=1024)
SPECS = {"teacher": TEACHER, "hybrid": TEACHER.as_student((1,), 16), "pure": TEACHER.as_student((), 64)}
NONE = frozenset({3})
PLAIN = SamplingParams(temperature=0.8, ignore_eos=True)
MIXES = {
    "plain": [PLAIN, replace(PLAIN, temperature=0)],
    "filters": [replace(PLAIN, top_k=5), replace(PLAIN, top_p=0.7), replace(PLAIN, min_p=0.1, top_p=0.9, top_k=20)],
}


def drive(runner: AnyRunner, params: list[SamplingParams], counts: tuple[int, ...]) -> list[Said]:
    """130 tokens of rows of three prompts, forked."""
    prompts = [[1, 5, 9], [2] * 70, [7]]
    starts = []
    for i, (handle, prompt, count) in enumerate(zip(runner.prefill(prompts), prompts, counts, strict=True)):
        rows = [RowStart(100 * i + j, params[j % len(params)], 150, len(prompt)) for j in range(count)]
        starts.append(Start(handle, tuple(rows), last=True))
    runner.fork(starts)
    for _ in range(130):
        runner.step()
    said = runner.said(range(sum(counts)))
    runner.release(range(sum(counts)))
    assert runner.usage == Usage(0, 0, 0, 0)
    return said


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("counts", [(5, 1, 2), (1, 1, 1), (24, 3, 2)])
@pytest.mark.parametrize("kind", SPECS)
def test_tokens_equal_the_cpus(kind: str, counts: tuple[int, ...], mix: str) -> None:
    from thinkfast.engine.cuda.runner import CudaRunner

    spec, rows = SPECS[kind], sum(counts)
    want = drive(Runner(random_model(spec), make_plan(spec, rows, 256, 4, None), NONE), MIXES[mix], counts)
    for capture in (True, False):
        plan = make_cuda_plan(spec, rows, 256, torch.float32, torch.float32, None)
        found = drive(CudaRunner(random_model(spec).cuda(), plan, NONE, capture), MIXES[mix], counts)
        for a, b in zip(found, want, strict=True):
            assert a.tokens == b.tokens[: len(a.tokens)]
            assert len(a.tokens) >= len(b.tokens) - 1
            assert a.logprobs == pytest.approx(b.logprobs[: len(a.tokens)], abs=1e-4)
            # The mean of one token more or less: the host hears of a step when the next has been launched.
            assert a.certainty == pytest.approx(b.certainty, abs=0.05)


def test_a_table_of_stops_may_come_after_steps_were_captured() -> None:
    """Captures know where the tables lie, so all are taken anew, and their memory with them."""
    from thinkfast.engine.cuda.runner import CudaRunner

    plan = make_cuda_plan(SPECS["hybrid"], 40, 256, torch.float32, torch.float32, None)
    runner = CudaRunner(random_model(SPECS["hybrid"]).cuda(), plan, NONE)
    first = drive(runner, MIXES["plain"], (24, 3, 2))
    drive(runner, MIXES["plain"], (5, 1, 2))
    assert runner.add_stop_table(torch.zeros(SPECS["hybrid"].vocab_size, dtype=torch.bool)) == 1
    again = drive(runner, MIXES["plain"], (24, 3, 2))
    assert [row.tokens for row in again] == [row.tokens for row in first]


def engine(kind: str, rows: int = 8, most: int | None = None) -> LLM:
    model = random_model(SPECS[kind]).cuda()
    whole = Loaded(kind, Path(), SPECS[kind], model, cast(Any, ToyTokenizer()), "")
    return LLM(whole, rows, 256, device="cuda", prefill_tokens=most)


@pytest.mark.parametrize(("most", "samples"), [(None, 10_000), (64, 2_000)])
@pytest.mark.parametrize("kind", SPECS)
def test_random_streams_with_cancels_and_deadlines_leak_nothing(kind: str, most: int | None, samples: int) -> None:
    """Prompts in one piece, or half of them in two."""
    rng, llm, entered, turn = random.Random(0), engine(kind, most=most), 0, -1
    while entered < samples:
        turn += 1
        assert turn < 100
        requests = [
            Request(
                f"{turn}-{i}",
                (1,) * (i % 20 + 1 if turn % 3 == 2 else rng.randrange(1, 130)),
                SamplingParams(n=rng.randrange(1, 12), max_tokens=rng.randrange(1, 40)),
                name=str(i % 20) if turn % 3 == 2 else "",
                keep=turn % 3 == 2,
            )
            for i in range(150)
        ]  # fmt: skip
        # In turns, as `solve_many` asks: then as many prompts as rows have samples that wait.
        for chain in llm.stream(requests, seconds=0.5 if turn % 3 == 0 else None, fair=turn % 2 == 1):
            entered += 1  # one that never had a row does not come back
            if rng.random() < 0.2:
                llm.cancel(f"{turn}-{rng.randrange(150)}")
            if rng.random() < 0.0005:
                break
            assert chain.finish in ("stop", "length", "deadline", "cancelled")
        assert llm._runner.usage == Usage(0, 0, 0, 0)


@pytest.mark.parametrize("kind", SPECS)
def test_nan_in_one_rows_logits_ends_that_row_alone(kind: str) -> None:
    clean, broken = engine(kind), engine(kind)
    prompts = [[5, 6, 7], [8, 9], [9, 10, 11]]
    want = clean.generate(prompts, replace(PLAIN, max_tokens=20))
    # Token 8 stands in one prompt only, and is forbidden to the others by nothing but chance.
    with torch.no_grad():
        broken.loaded.model.embed.weight[8] = float("nan")
    found = broken.generate(prompts, replace(PLAIN, max_tokens=20))
    assert found[1][0].finish == "error"
    for i in (0, 2):
        until = next((n for n, t in enumerate(want[i][0].tokens) if t == 8), 20)
        assert found[i][0].tokens[:until] == want[i][0].tokens[:until]


def test_a_model_too_large_for_the_card_is_refused_with_the_plan() -> None:
    with pytest.raises(CapacityError, match="SSM states") as refused:
        make_cuda_plan(SPECS["pure"], 10**7, 256, torch.bfloat16, torch.float32, torch.cuda.mem_get_info()[0])
    assert "max_batch=" in refused.value.remedy


def test_the_device_chooses_the_runner() -> None:
    from thinkfast.engine.cuda.runner import CudaRunner

    model = random_model(TEACHER).cuda()
    plan = make_cuda_plan(TEACHER, 2, 64, torch.float32, torch.float32, None)
    assert isinstance(make_runner(model, plan, NONE), CudaRunner)


def test_a_student_between_two_powers_of_two_is_captured_too() -> None:
    from thinkfast.engine.cuda.runner import CudaRunner

    spec, found = TEACHER.as_student((1,), 24), []
    for device in ("cpu", "cuda"):
        own = Loaded("odd", Path(), spec, random_model(spec).to(device), cast(Any, ToyTokenizer()), "")
        llm = LLM(own, 8, 256, device=device)
        chains = llm.generate([[5, 6, 7], [8]], replace(PLAIN, n=3, max_tokens=40))
        found.append([chain.tokens for chains_of_one in chains for chain in chains_of_one])
    assert isinstance(llm._runner, CudaRunner)
    assert found[0] == found[1]
    assert len({tuple(tokens) for tokens in found[0]}) > 3


@pytest.mark.parametrize("kind", SPECS)
def test_a_prompt_in_pieces_is_the_prompt(kind: str) -> None:
    """Ones that take their pages over, and ones that are shared; beside rows that run."""
    prompts = [[5, 6, 7], [5 + i % 40 for i in range(200)], [5 + i % 31 for i in range(129)]]
    params = replace(PLAIN, n=3, max_tokens=40)
    found = [
        [chain.tokens for chains in engine(kind, most=most).generate(prompts, params) for chain in chains]
        for most in (None, 64)
    ]
    assert found[0] == found[1]
    assert len(set(found[0])) == 9


def test_a_prefill_is_told_by_its_time_on_the_device() -> None:
    """Long prompts and one step: nearly all is the prefill's, of which the host sees little more than the launch."""
    llm = engine("hybrid", 8)
    prompts = [[5 + i % 40 for i in range(250)]] * 8
    for _ in range(2):  # the second without compiling
        before = replace(llm.stats)
        llm.generate(prompts, SamplingParams(max_tokens=2, ignore_eos=True))
    told = llm.stats.prefill_seconds - before.prefill_seconds
    torch.cuda.synchronize()
    began = time.perf_counter()
    handles = llm._runner.prefill(prompts)
    torch.cuda.synchronize()
    alone = time.perf_counter() - began
    for handle in handles:
        llm._runner.close(handle)
    assert alone / 2 < told < alone * 2
    assert llm.stats.decode_seconds > before.decode_seconds
