"""A fork that breaks off leaves the runner as if its rows had come and gone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")
sys.path.append(str(Path(__file__).parents[1]))

from toy_models import random_model

from thinkfast.engine.cache import Usage
from thinkfast.engine.cuda import runner as module
from thinkfast.engine.cuda.plan import make_cuda_plan
from thinkfast.engine.cuda.runner import CudaRunner
from thinkfast.engine.cuda.state import State
from thinkfast.engine.request import SamplingParams
from thinkfast.engine.rows import RowStart
from thinkfast.engine.runner import Start
from thinkfast.models.spec import ModelSpec

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Each program takes the interpreter a tenth of a second: it gets as few as can be.
SIZES = (6, 2, 16, 48) if torch.cuda.is_available() else (2, 1, 16, 32)
SPEC = ModelSpec(64, 32, *SIZES, ("attention",) * 2, tie_embeddings=False, max_positions=256).as_student((0,), 16)
PARAMS = SamplingParams(temperature=0.8, ignore_eos=True)
PROMPT = [5, 9, 11]


def rows(count: int, first: int = 0) -> tuple[RowStart, ...]:
    return tuple(RowStart(first + i, PARAMS, 5, len(PROMPT)) for i in range(count))


def said(runner: CudaRunner, steps: int = 1) -> list[tuple[int, ...]]:
    for _ in range(steps):
        runner.step()
    return [row.tokens for row in runner.said(range(len(runner.book.rows)))]


@pytest.mark.parametrize(("where", "name", "last"), [(State, "enter", True), (module, "draw", False)])
def test_a_fork_that_breaks_off_takes_its_rows_back(
    where: object, name: str, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(SPEC).to(DEVICE)
    plan = make_cuda_plan(SPEC, 8, 64, torch.float32, torch.float32, None)

    def begun() -> CudaRunner:
        """Two rows in flight, of a prompt that may have more."""
        runner = CudaRunner(model, plan, frozenset(), capture=False)
        (prompt,) = runner.prefill([PROMPT])
        runner.fork([Start(prompt, rows(2), last=False)])
        runner.step()
        return runner

    def broken(*arguments: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    want, runner = said(begun()), begun()
    before = runner.usage
    one, two = runner.prefill([PROMPT, PROMPT])
    with monkeypatch.context() as patch:
        patch.setattr(where, name, broken)
        with pytest.raises(torch.OutOfMemoryError):
            runner.fork([Start(one, rows(1, 7), last), Start(two, rows(1, 8), last)])
    for prompt in (one, two):
        runner.close(prompt)
    assert runner.usage == before
    assert said(runner) == want
    runner.release(range(2))
    # The places that were taken back are as good as new.
    (prompt,) = runner.prefill([PROMPT])
    runner.fork([Start(prompt, rows(2), last=True)])
    assert said(runner, 2) == want
    runner.release(range(2))
    assert runner.usage == Usage(0, 1, 1, 1)
