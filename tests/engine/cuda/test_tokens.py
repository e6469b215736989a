"""The GPU's runner, every kernel of a step in its place, gives the plain runner's tokens: on a GPU with real kernels,
elsewhere by Triton's interpreter. No graph is captured; that is test_runner.py's affair.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")
sys.path.append(str(Path(__file__).parents[1]))

from toy_models import random_model

from thinkfast.engine.cache import Usage
from thinkfast.engine.cuda import plan as cuda_plan
from thinkfast.engine.cuda import step as cuda_step
from thinkfast.engine.cuda.folding import folded_bytes
from thinkfast.engine.cuda.plan import make_cuda_plan
from thinkfast.engine.cuda.runner import CudaRunner
from thinkfast.engine.plan import make_plan
from thinkfast.engine.request import SamplingParams
from thinkfast.engine.rows import RowStart
from thinkfast.engine.runner import Runner, Start
from thinkfast.engine.runners import AnyRunner
from thinkfast.kernels.triton import sampler
from thinkfast.kernels.triton.product import Cuts
from thinkfast.kernels.triton.sampler import BLOCK
from thinkfast.models.fp8 import in_fp8
from thinkfast.models.padding import with_d_state
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import ModelSpec

# The interpreter turns arrays of one element into numbers, of which numpy 2.3 warns.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Every kernel of a step is met, by as few programs as can be: each takes a tenth of a second.
TEACHER = ModelSpec(64, 32, 2, 1, 16, 32, ("attention",) * 2, tie_embeddings=False, max_positions=256)
SPEC, FOLDED = TEACHER.as_student((1,), 16), TEACHER.as_student((0,), 16)
NONE, F32 = frozenset({3}), torch.float32
PARAMS = SamplingParams(temperature=0.8, ignore_eos=True)


# The last as steps of many rows run, norms being folded into gates and ups, and the second block's input projection.
@pytest.mark.parametrize(
    ("fp8", "vocabulary", "many"),
    [(False, 64, False), (True, 64, False), (False, BLOCK + 64, False), (False, 64, True)],
)
def test_a_few_tokens_equal_the_plain_runners(
    fp8: bool, vocabulary: int, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "_ROOM", 1)  # logits in as many parts as there are blocks
    spec = replace(FOLDED if many else SPEC, vocab_size=vocabulary)
    if many:
        for module in (cuda_plan, cuda_step):
            monkeypatch.setattr(module, "MOST_ROWS", 1)
        monkeypatch.setattr(cuda_step, "cuts", lambda rows: Cuts())
        if DEVICE == "cpu":  # a GPU has no room for its tiles in fp32
            monkeypatch.setattr(cuda_step, "serves", lambda rows, weight: True)
    model = in_fp8(random_model(spec)) if fp8 else random_model(spec)
    there = in_fp8(random_model(spec).to(DEVICE)) if fp8 else random_model(spec).to(DEVICE)
    plan = make_cuda_plan(spec, 4, 128, F32, F32, None, folded_bytes(there))
    assert plan.packed_bytes == (sum(folded_bytes(there)) if many else 0)
    check_tokens(CudaRunner(there, plan, NONE, capture=False), Runner(model, make_plan(spec, 4, 128, 4, None), NONE))


def test_a_student_between_two_powers_of_two_gives_its_own_tokens() -> None:
    """With states that stay zero it is of a size that kernels take, and says what it said without them."""
    model = random_model(TEACHER.as_student((1,), 9))
    there = with_d_state(random_model(model.spec).to(DEVICE), 16)
    plan = make_cuda_plan(there.spec, 4, 128, F32, F32, None, folded_bytes(there))
    plain = Runner(model, make_plan(model.spec, 4, 128, 4, None), NONE)
    check_tokens(CudaRunner(there, plan, NONE, capture=False), plain)


def check_tokens(ours: CudaRunner, plain: Runner, prompts: Sequence[Sequence[int]] = ([5, 9, 11],)) -> None:
    """Both say the same after a prefill, two forks of every prompt and a few steps."""
    said = []
    runners: tuple[AnyRunner, ...] = (ours, plain)
    for runner in runners:
        handles = runner.prefill(prompts)
        rows = [tuple(RowStart(key, PARAMS, 9, len(prompt)) for key in (17, 99)) for prompt in prompts]
        runner.fork([Start(handle, own, last=False) for handle, own in zip(handles, rows, strict=True)])
        for _ in range(4):
            runner.step()
        # The captured one is a step behind in what it has heard.
        said.append([row.tokens[:4] for row in runner.said(range(2 * len(prompts)))])
        for handle in handles:
            runner.close(handle)
    assert said[0] == said[1]
    assert all(len(tokens) == 4 for tokens in said[0])
    assert len(set(said[0])) == 2 * len(prompts)


def test_prompts_of_very_different_lengths_in_one_prefill_keep_to_themselves() -> None:
    """Attention takes them in parts; what each has left is in its own slot, and on its own pages of 64 tokens."""
    model, prompts = random_model(SPEC), [[7], [(3 * i) % 60 for i in range(70)], [9, 11]]
    assert Ragged(torch.tensor([len(prompt) for prompt in prompts])).alike is not None
    there = random_model(SPEC).to(DEVICE)
    ours = CudaRunner(there, make_cuda_plan(SPEC, 6, 128, F32, F32, None), NONE, capture=False)
    check_tokens(ours, Runner(model, make_plan(SPEC, 6, 128, 4, None), NONE), prompts)


@pytest.mark.parametrize("keep", [(0, 1), (1,), ()])
def test_a_prompt_in_pieces_is_the_prompt(keep: tuple[int, ...]) -> None:
    """Behind a page, and behind two; what is said is what the plain runner says of it whole."""
    spec, prompt = TEACHER if len(keep) == 2 else TEACHER.as_student(keep, 16), [(3 * i) % 60 for i in range(133)]
    said = []
    for captured in (False, True):
        plan = make_cuda_plan(spec, 2, 192, F32, F32, None) if captured else make_plan(spec, 2, 192, 4, None)
        model = random_model(spec).to(DEVICE if captured else "cpu")
        runner: AnyRunner = CudaRunner(model, plan, NONE, capture=False) if captured else Runner(model, plan, NONE)
        (handle,) = runner.prefill([prompt[:64] if captured else prompt])
        for begin, end in ((64, 128), (128, 133)) if captured else ():
            handle = runner.extend(handle, prompt[begin:end])
        assert handle.length == 133
        runner.fork([Start(handle, tuple(RowStart(key, PARAMS, 9, 133) for key in (17, 99)), last=True)])
        for _ in range(4):
            runner.step()
        said.append([row.tokens[:4] for row in runner.said(range(2))])
        runner.release(range(2))
        assert runner.usage == Usage(0, 0, 0, 0)
    assert said[0] == said[1]
    assert said[0][0] != said[0][1]


@pytest.mark.parametrize("captured", [False, True])
def test_a_prefill_that_is_broken_off_leaves_nothing_behind(captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when memory runs out, or a user has waited enough: as many prompts as before have room."""
    model, prompts = random_model(SPEC).to(DEVICE if captured else "cpu"), [[5, 9, 11], [7]]
    runner: AnyRunner = (
        CudaRunner(model, make_cuda_plan(SPEC, 2, 128, F32, F32, None), NONE, capture=False)
        if captured
        else Runner(model, make_plan(SPEC, 2, 128, 4, None), NONE)
    )

    def broken_off(hidden: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model, "logits", broken_off)
        for _ in range(5):
            with pytest.raises(KeyboardInterrupt):
                runner.prefill(prompts)
    assert runner.usage == Usage(0, 0, 0, 0)
    for handle in runner.prefill(prompts):
        runner.close(handle)


@pytest.mark.parametrize("launched", [False, True])
def test_after_a_step_that_was_broken_off_news_are_found_where_they_are(
    launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(SPEC).to(DEVICE)
    runner = CudaRunner(model, make_cuda_plan(SPEC, 2, 128, F32, F32, None), NONE, capture=False)

    def said() -> list[tuple[int, ...]]:
        (prompt,) = runner.prefill([[5, 9, 11]])
        runner.fork([Start(prompt, (RowStart(17, PARAMS, 9, 3), RowStart(99, PARAMS, 9, 3)), last=True)])
        for _ in range(6):
            runner.step()
        found = [row.tokens[:6] for row in runner.said(range(2))]
        runner.release(range(2))
        return found

    want = said()
    assert all(len(set(tokens)) > 1 for tokens in want)
    run = runner.graphs.run

    def broken_off(*kind: Any, capture: bool) -> None:
        if launched:
            run(*kind, capture=capture)
        raise KeyboardInterrupt

    (prompt,) = runner.prefill([[7]])
    runner.fork([Start(prompt, (RowStart(3, PARAMS, 9, 1),), last=True)])
    with monkeypatch.context() as patch:
        patch.setattr(runner.graphs, "run", broken_off)
        with pytest.raises(KeyboardInterrupt):
            runner.step()
    runner.release([0])
    assert said() == want
