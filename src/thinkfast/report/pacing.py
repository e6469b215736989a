"""What a step and a prompt token cost on this machine: measured, for the replay of logs.

Usage: ``times = step_times(llm, prompts); times.step(12)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from thinkfast.engine.llm import LLM
from thinkfast.engine.request import Request, SamplingParams
from thinkfast.report.replay import StepTimes

STEPS = 48


def step_times(llm: LLM, prompts: Sequence[Sequence[int]], repeats: int = 3) -> StepTimes:
    """Seconds of a decode step at 1, 2, 4, ... rows up to the engine's, and of a prompt token; medians of repeats.

    Chains of ``prompts`` of a forced length go through the engine's own stream, so a step is what a solving sees.
    """
    sizes = sorted({*(2**e for e in range(llm.plan.max_batch.bit_length())), llm.plan.max_batch})
    found = [(rows, median(_step(llm, prompts, rows, salt) for salt in range(repeats))) for rows in sizes]
    # A wider step never costs less; where noise says so, the narrower one was disturbed.
    steps = [(rows, min(seconds for _, seconds in found[place:])) for place, (rows, _) in enumerate(found)]
    return StepTimes(tuple(steps), median(_prefill(llm, prompts) for _ in range(repeats)))


def _step(llm: LLM, prompts: Sequence[Sequence[int]], rows: int, salt: int) -> float:
    params = SamplingParams(max_tokens=STEPS + 1, seed=salt, ignore_eos=True)
    steps, seconds = llm.stats.steps, llm.stats.decode_seconds
    list(llm.stream([Request(f"pace {i}", tuple(prompts[i % len(prompts)]), params) for i in range(rows)]))
    return (llm.stats.decode_seconds - seconds) / (llm.stats.steps - steps)


def _prefill(llm: LLM, prompts: Sequence[Sequence[int]]) -> float:
    before, tokens = llm.stats.prefill_seconds, llm.stats.prefill_tokens
    params = SamplingParams(max_tokens=1)
    list(llm.stream([Request(f"prefill {i}", tuple(p), params) for i, p in enumerate(prompts[:16])]))
    return (llm.stats.prefill_seconds - before) / max(1, llm.stats.prefill_tokens - tokens)
