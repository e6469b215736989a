"""A prefill of several prompts, one of one, one in two pieces, a fork and some steps, uncaptured: every kernel of a
model once or more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from thinkfast.engine.cache import PAGE
from thinkfast.engine.cuda.folding import folded_bytes
from thinkfast.engine.cuda.plan import make_cuda_plan
from thinkfast.engine.cuda.runner import CudaRunner
from thinkfast.engine.request import SamplingParams
from thinkfast.engine.rows import RowStart
from thinkfast.engine.runner import Start
from thinkfast.models.decoder import Decoder

PARAMS = SamplingParams(temperature=0.8, ignore_eos=True)
LAST, MOST_TOKENS = [5, 9, 11], 9


def drive(
    model: Decoder,
    rows: int,
    state: torch.dtype,
    prompts: Sequence[Sequence[int]],
    steps: int,
    mix: Sequence[SamplingParams] = (PARAMS,),
) -> list[tuple[int, ...]]:
    """What ``rows`` rows of LAST have said, sampled as ``mix`` says in turn, the last step's tokens still on their way;
    of ``prompts`` as many as there is room for are prefilled before it and closed, and so is a longer one in pieces.
    """
    weights = model.head_weight.dtype
    plan = make_cuda_plan(model.spec, rows, 256, weights, state, None, folded_bytes(model))
    runner = CudaRunner(model, plan, frozenset({3}), capture=False)
    for prompt in runner.prefill(prompts[: plan.prompts]):
        runner.close(prompt)
    (prompt,) = runner.prefill([[7] * PAGE])
    runner.close(runner.extend(prompt, LAST))
    (prompt,) = runner.prefill([LAST])
    starts = tuple(RowStart(i, mix[i % len(mix)], MOST_TOKENS, len(LAST)) for i in range(rows))
    runner.fork([Start(prompt, starts, last=True)])
    for _ in range(steps):
        runner.step()
    return [row.tokens for row in runner.said(range(rows))]
