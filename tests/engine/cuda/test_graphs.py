"""What has been prepared is not met anew, and preparing changes no token of a row in flight."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")
sys.path.append(str(Path(__file__).parents[1]))

from toy_models import random_model

from thinkfast.engine.cuda.plan import make_cuda_plan
from thinkfast.engine.cuda.runner import CudaRunner
from thinkfast.engine.request import SamplingParams
from thinkfast.engine.rows import RowStart
from thinkfast.engine.runner import Start
from thinkfast.models.spec import ModelSpec

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Each program takes the interpreter a tenth of a second: it gets as few as can be.
SIZES = (6, 2, 16, 48) if torch.cuda.is_available() else (2, 1, 16, 32)
TEACHER = ModelSpec(64, 32, *SIZES, ("attention",) * 2, tie_embeddings=False, max_positions=256)
PARAMS = SamplingParams(temperature=0.8, ignore_eos=True)
FILTERED = SamplingParams(temperature=0.8, top_k=5, ignore_eos=True)
PROMPT = [5, 9, 11]


def begun(spec: ModelSpec, params: SamplingParams) -> CudaRunner:
    """Two rows in flight of one prompt, which attention reads in tiles, and one of another."""
    plan = make_cuda_plan(spec, 5, 64, torch.float32, torch.float32, None)
    runner = CudaRunner(random_model(spec).to(DEVICE), plan, frozenset())
    prompts = runner.prefill([PROMPT, PROMPT[:2]])
    rows = tuple(RowStart(i, params, 8, len(PROMPT)) for i in range(3))
    runner.fork([Start(prompts[0], rows[:2], last=True), Start(prompts[1], rows[2:], last=True)])
    return runner


def emptied(runner: CudaRunner) -> list[tuple[int, ...]]:
    """Tokens of rows of which one leaves after each step."""
    found = []
    while runner.book.rows:
        runner.step()
        found += [said.tokens for said in runner.said([0])]
        runner.release([0])
    return found


@pytest.mark.parametrize(("kind", "params"), [("teacher", PARAMS), ("pure", FILTERED)])
def test_what_is_prepared_is_all_that_a_run_meets(kind: str, params: SamplingParams) -> None:
    spec = TEACHER if kind == "teacher" else TEACHER.as_student((), 16)
    want, runner = emptied(begun(spec, params)), begun(spec, params)
    runner.prepare(params.truncated)  # between a fork and a step: nobody notices
    met = set(runner.graphs._graphs)
    assert {size for size, _, _ in met} == set(runner.graphs.sizes) == {1, 2, 4, 5}
    assert {tiled for _, tiled, _ in met} == ({False, True} if kind == "teacher" else {False})
    assert emptied(runner) == want
    assert set(runner.graphs._graphs) == met
    runner.prepare(params.truncated)
    assert set(runner.graphs._graphs) == met
