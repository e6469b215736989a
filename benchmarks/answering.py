"""Greedy answers of one model in several forms: what is right in each, and what differs from the first.

told = compared({"fp32": greedy(one, prompts, 320), "fp8": greedy(other, prompts, 320)}, problems)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from thinkfast.data.problems import Problem
from thinkfast.engine.llm import LLM
from thinkfast.engine.request import SamplingParams
from thinkfast.judge.answer import extract_answer
from thinkfast.judge.canonical import canonical_key


def greedy(llm: LLM, prompts: Sequence[Sequence[int]], new: int) -> list[str | None]:
    """The key of one answer a prompt."""
    chains = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=new))
    answers = [extract_answer(chain.text) for (chain,) in chains]
    return [None if answer is None else canonical_key(answer) for answer in answers]


def compared(given: Mapping[str, Sequence[str | None]], problems: Sequence[Problem]) -> dict[str, dict[str, float]]:
    """Accuracy of each form, and the share of answers that are not the first form's."""
    first, golds = next(iter(given.values())), [canonical_key(problem.answer) for problem in problems]
    told = {}
    for form, answers in given.items():
        right = sum(answer == gold for answer, gold in zip(answers, golds, strict=True))
        changed = sum(a != b for a, b in zip(answers, first, strict=True))
        told[form] = {"accuracy": right / len(problems), "changed": changed / len(problems)}
        print(form, told[form], flush=True)
    return told
