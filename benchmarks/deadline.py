"""Is an answer there by T seconds, one decode step and 50 ms, also while the checker hangs?

Each try solves another problem with more chains than can finish. In half of them the chains' answers are dressed up as
algebra that keys cannot compare, and the checker that is asked never comes back. What judging costs: overhead.py.

    python benchmarks/deadline.py --tries 200 --seconds 1 --out results/deadline-cpu.json
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from publish import publish

from thinkfast.data.problems import load_problems
from thinkfast.engine.llm import LLM
from thinkfast.judge.deciding import Posterior, never
from thinkfast.judge.solve import solve
from thinkfast.models.loading import load_model

GRACE = 0.05


class Dressed:
    """The tokenizer, but every boxed number becomes algebra, each time another."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return [self._dressed(text) for text in self._inner.decode_batch(rows)]

    def _dressed(self, text: str) -> str:
        self._count += 1
        algebra = rf"\frac{{%sx+{self._count}}}{{x+{self._count}}}"
        # A function, because a template would be compiled anew each time, at four times the cost of the rest.
        return re.sub(r"\\boxed\{(\d+)\}", lambda found: rf"\boxed{{{algebra % found[1]}}}", text)


class Hanging:
    """A checker that is asked and never answers."""

    def __init__(self) -> None:
        self.asked = 0
        self._never = threading.Event()

    def check(self, answer: str, gold: str) -> bool | None:
        self.asked += 1
        self._never.wait()
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first try, to run them in parts")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--out", type=Path, help="a file that parts add to")
    options = parser.parse_args()
    loaded = load_model(options.model)
    plain = LLM(loaded, 64, 512)
    dressed = LLM(replace(loaded, tokenizer=cast(Any, Dressed(loaded.tokenizer))), 64, 512)
    problems = load_problems("tiny_val:2", options.first + options.tries)[options.first :]
    slowest = 0.0
    for llm in (plain, dressed):
        step = llm._runner.step

        def timed(step: Any = step) -> Any:
            nonlocal slowest
            began = time.monotonic()
            try:
                return step()
            finally:
                slowest = max(slowest, time.monotonic() - began)

        llm._runner.step = timed  # type: ignore[method-assign]
        solve(problems[0].question, seconds=0.3, model=llm)
    tries = []
    for number, problem in enumerate(problems, start=options.first):
        hangs = number % 2 == 1
        llm, checker = (dressed, Hanging()) if hangs else (plain, None)
        rule = Posterior(0.99) if number % 4 == 0 else never
        slowest, began = 0.0, time.monotonic()
        found = solve(
            problem.question, seconds=options.seconds, model=llm, n=1024, checker=checker, seed=number, stop_rule=rule
        )
        took = time.monotonic() - began
        late = took - options.seconds - slowest
        tries.append(
            {
                "number": number,
                "hangs": hangs,
                "asked": checker.asked if checker else 0,
                "took": took,
                "slowest_step": slowest,
                "late": late,
                "answered": found.answer is not None,
                "status": found.status,
                "finished": found.n_finished,
            }
        )
    earlier = json.loads(options.out.read_text()) if options.out and options.out.is_file() else {}
    tries = [*earlier.get("tries", []), *tries]
    kept = [t["late"] <= GRACE for t in tries]
    result = {
        "what": "tries answered within T + the slowest decode step of the try + 50 ms",
        "kept": f"{sum(kept)} of {len(kept)}",
        "kept_while_the_checker_hung": f"{sum(k for k, t in zip(kept, tries, strict=True) if t['asked'])} of "
        f"{sum(t['asked'] > 0 for t in tries)}",
        "answered": sum(t["answered"] for t in tries),
        "late_ms": {
            q: 1e3 * float(np.quantile([t["late"] for t in tries], p)) for q, p in (("median", 0.5), ("max", 1))
        },
        "past_T_ms_max": 1e3 * max(t["took"] - options.seconds for t in tries),
        "seconds": options.seconds,
        "model": options.model,
        "threads": torch.get_num_threads(),
        "tries": tries,
    }
    publish(result, options.out, unprinted=("tries", "provenance"))


if __name__ == "__main__":
    main()
