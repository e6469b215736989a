"""Measured time of a decode step against context, for several models side by side in one run.

Drives the engine's runner itself, because a public run tells its steps' sum only. Every model takes the same number
of steps from the same short prompts, in turns; each step is timed alone, and a point of the curve is the lower
quartile of the steps around it over all turns, so that a busy neighbour bends it little.

Usage: ``step_curves({"tiny": loaded}, batch=64, longest=576)["tiny"].seconds``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from thinkfast.engine.plan import PREFILL_TOKENS
from thinkfast.engine.request import SamplingParams
from thinkfast.engine.rows import RowStart
from thinkfast.engine.runner import Start
from thinkfast.engine.runners import AnyRunner, make_runner, plan_for
from thinkfast.models.loading import Loaded
from thinkfast.report.breakeven import Curve, Floats

PROMPT = 8
POINTS = 8


def step_curves(
    models: Mapping[str, Loaded], batch: int, longest: int, turns: int = 2, say: Callable[[str], None] | None = None
) -> dict[str, Curve]:
    """Seconds of a step of ``batch`` rows at POINTS contexts from PROMPT to ``longest`` tokens, by model."""
    runners = {name: _runner(loaded, batch, longest) for name, loaded in models.items()}
    times: dict[str, list[Floats]] = {name: [] for name in models}
    for _ in range(turns):
        for name, runner in runners.items():
            if say is not None:
                say(f"{name}: step time up to context {longest}")
            times[name].append(_steps(runner, models[name].spec.vocab_size, batch, longest))
    return {name: _curve(np.stack(found)) for name, found in times.items()}


def _runner(loaded: Loaded, batch: int, longest: int) -> AnyRunner:
    return make_runner(loaded.model, plan_for(loaded.model, batch, max(longest, PROMPT + 2)), loaded.tokenizer.eos_ids)


def _steps(runner: AnyRunner, size: int, batch: int, longest: int) -> Floats:
    """Seconds of each of ``new`` - 1 steps, the first over PROMPT + 1 tokens; ``size``: of the vocabulary."""
    new = max(longest - PROMPT, 2)  # a fork draws the first of them
    prompts = torch.randint(0, size, (batch, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()
    params = SamplingParams(max_tokens=new, ignore_eos=True)
    for first in range(0, batch, PREFILL_TOKENS // PROMPT):
        part = prompts[first : first + PREFILL_TOKENS // PROMPT]
        handles = runner.prefill(part)
        rows = [(RowStart(first + i, params, new, PROMPT),) for i in range(len(part))]
        runner.fork([Start(handle, row, last=True) for handle, row in zip(handles, rows, strict=True)])
    times = np.empty(new - 1)
    for i in range(len(times)):
        began = time.perf_counter()
        runner.step()  # it ends when the device is done with it, or, where the host runs ahead, with the one before
        times[i] = time.perf_counter() - began
    runner.release(range(batch))
    return times


def _curve(times: Floats) -> Curve:
    """times [turns, steps] to a curve of at most POINTS points."""
    windows = np.array_split(np.arange(times.shape[1]), min(POINTS, times.shape[1]))
    context = [PROMPT + 1 + float(window.mean()) for window in windows]
    return Curve(tuple(context), tuple(float(np.quantile(times[:, window], 0.25)) for window in windows))
