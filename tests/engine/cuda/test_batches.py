"""A row's tokens are its own: beside rows of other lengths, alone, or forked from a prompt that others share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")
sys.path.append(str(Path(__file__).parents[1]))

from toy_models import random_model

from thinkfast.engine.cache import PAGE, Usage
from thinkfast.engine.cuda.plan import make_cuda_plan
from thinkfast.engine.cuda.runner import CudaRunner
from thinkfast.engine.request import SamplingParams
from thinkfast.engine.rng import sample_key
from thinkfast.engine.rows import RowStart
from thinkfast.engine.runner import Start
from thinkfast.models.spec import ModelSpec

# The interpreter turns arrays of one element into numbers, of which numpy 2.3 warns.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ON_GPU = torch.cuda.is_available()
F32 = torch.float32
# In fp32, where a sum in another order is off by a millionth and a token falls to the other side in none of these rows.
if ON_GPU:
    TEACHER = ModelSpec(64, 64, 6, 2, 16, 96, ("attention",) * 2, tie_embeddings=False, max_positions=2048)
    SPECS = {"teacher": TEACHER, "hybrid": TEACHER.as_student((1,), 16), "pure": TEACHER.as_student((), 64)}
    LENGTHS, SAMPLES, STEPS = (1, 2, 3, 4, 5, 63, 64, 65, 1000), 6, 30
else:  # each program takes the interpreter a tenth of a second
    TEACHER = ModelSpec(64, 32, 2, 1, 16, 32, ("attention",) * 2, tie_embeddings=False, max_positions=256)
    SPECS = {"hybrid": TEACHER.as_student((1,), 16)}
    LENGTHS, SAMPLES, STEPS = (1, 5), 4, 4
PLAIN = SamplingParams(temperature=0.8, ignore_eos=True)
LIMIT = STEPS + 2


def made(kind: str, rows: int) -> CudaRunner:
    spec = SPECS[kind]
    # A prompt's last page and a row's own may each be begun and no more.
    plan = make_cuda_plan(spec, rows, max(LENGTHS) + LIMIT + PAGE, F32, F32, None)
    return CudaRunner(random_model(spec).to("cuda" if ON_GPU else "cpu"), plan, frozenset(), capture=ON_GPU)


def prompt_of(length: int) -> list[int]:
    return [(11 * length + 5 * i) % 64 for i in range(length)]


def start(runner: CudaRunner, prompt: list[int], samples: Sequence[int]) -> None:
    """Rows of a prompt of their own prefill, with these numbers among its samples."""
    (handle,) = runner.prefill([prompt])
    keys = [sample_key(7, str(len(prompt)), sample) for sample in samples]
    # Every third is greedy.
    params = [replace(PLAIN, temperature=0.0) if sample % 3 == 2 else PLAIN for sample in samples]
    rows = tuple(RowStart(key, one, LIMIT, len(prompt)) for key, one in zip(keys, params, strict=True))
    runner.fork([Start(handle, rows, last=True)])


def said(runner: CudaRunner, rows: int) -> list[tuple[int, ...]]:
    for _ in range(STEPS):
        runner.step()
    found = [row.tokens for row in runner.said(range(rows))]
    runner.release(range(rows))
    assert runner.usage == Usage(0, 0, 0, 0)
    assert all(len(tokens) == STEPS for tokens in found)
    return found


@pytest.mark.parametrize("kind", SPECS)
def test_rows_of_a_ragged_batch_are_those_of_each_alone(kind: str) -> None:
    """Prefilled together and stepped together, or neither; alone in a slot that another has used."""
    prompts = [prompt_of(length) for length in LENGTHS]
    runner = made(kind, len(prompts))
    handles = runner.prefill(prompts)
    rows = [RowStart(sample_key(7, str(len(p)), 0), PLAIN, LIMIT, len(p)) for p in prompts]
    runner.fork([Start(handle, (row,), last=True) for handle, row in zip(handles, rows, strict=True)])
    together = said(runner, len(prompts))
    assert len(set(together)) == len(prompts)
    for prompt, want in zip(prompts, together, strict=True):
        start(runner, prompt, [0])
        assert said(runner, 1) == [want]


@pytest.mark.parametrize("kind", SPECS)
def test_forked_samples_are_independent_requests(kind: str) -> None:
    """Samples of one prefill that share its pages, and as many requests with prefills and pages of their own."""
    lengths = LENGTHS if ON_GPU else LENGTHS[-1:]
    runner = made(kind, SAMPLES * len(lengths))
    found = []
    for apart in (False, True):
        for length in lengths:
            samples = list(range(SAMPLES))
            for some in [[sample] for sample in samples] if apart else [samples]:
                start(runner, prompt_of(length), some)
        assert all((row.prompt is None) is apart for row in runner.book.rows)
        # A prompt that is shared is read for all of its rows at once.
        assert runner._kind[1] is (runner.book.has_kv and not apart)
        found.append(said(runner, SAMPLES * len(lengths)))
    assert found[0] == found[1]
    assert len(set(found[0])) > len(found[0]) // 2
