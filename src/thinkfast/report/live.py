"""Accuracy at fixed seconds a problem, measured live and replayed from the sample log, and whether the two agree.

Live: every problem is solved by itself through `judge.solve`, once per budget, answers appended to `live.jsonl` one by
one, so a killed run goes on where it was. Replayed: the same solving played from the log on step times measured on this
machine, at any budget and for nothing. They agree where the interval of their paired difference holds zero.

Usage: ``run_live(config, system, llm, problems, rows, out); agreement(read_live(out), recording)``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from thinkfast.data.problems import Problem
from thinkfast.engine.llm import LLM
from thinkfast.errors import InputError
from thinkfast.files import atomic_write
from thinkfast.jsonl import JsonlLog, read_jsonl
from thinkfast.judge.answer import Equivalence, judge
from thinkfast.judge.solve import solve
from thinkfast.report.intervals import Estimate, bootstrap, paired
from thinkfast.report.replay import Recording, Setting, StepTimes, replay

LIVE, TIMES = "live.jsonl", "times.json"
ORDERS = 8  # random orders of the log's samples that a replay is averaged over
SEED = 7919  # added to the seed of the log: live chains are other chains


@dataclass(frozen=True, slots=True)
class LiveRow:
    """One problem solved within a budget of seconds. took: of the whole call; share, confidence: as in `Solution`."""

    system: str
    budget: float
    problem: str
    answer: str | None
    correct: bool
    share: float
    confidence: float | None
    took: float
    chains: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """Live against replay for one system and budget; difference: live - replay with its interval over problems."""

    system: str
    budget: float
    live: Estimate
    replayed: Estimate
    difference: float
    low: float
    high: float

    @property
    def agree(self) -> bool:
        """Whether the interval of the difference holds zero."""
        return self.low <= 0 <= self.high


def run_live(
    out: Path,
    system: str,
    llm: LLM,
    problems: Sequence[Problem],
    budgets: Sequence[float],
    *,
    n: int,
    temperature: float,
    max_tokens: int,
    seed: int,
    checker: Equivalence | None = None,
    on_row: Callable[[LiveRow], None] | None = None,
) -> None:
    """Solve what is not yet in ``out``'s live log. Errors: as `judge.solve.solve`; OutputError."""
    with JsonlLog(out / LIVE) as log:
        done = {(row["system"], row["budget"], row["problem"]) for row in log.rows()}
        for budget in budgets:
            for number, problem in enumerate(problems):
                if (system, budget, problem.id) in done:
                    continue
                found = solve(
                    problem.question,
                    seconds=budget,
                    model=llm,
                    n=n,
                    temperature=temperature,
                    max_tokens=max_tokens,
                    seed=seed + SEED + number,
                )
                verdict = judge(f"\\boxed{{{found.answer}}}", problem.answer, checker)
                row = LiveRow(
                    system,
                    budget,
                    problem.id,
                    found.answer,
                    found.answer is not None and verdict.correct is True,
                    found.share,
                    found.confidence,
                    found.seconds,
                    len(found.chains),
                    found.tokens,
                )
                log.append(asdict(row))
                if on_row is not None:
                    on_row(row)


def read_live(out: Path) -> list[LiveRow]:
    """The live log of a folder; empty where nothing ran live. Errors: InputError where a row is there twice."""
    path = out / LIVE
    rows: list[LiveRow] = []
    seen: set[tuple[str, float, str]] = set()
    for line in read_jsonl(path, allow_torn_end=True) if path.is_file() else ():
        row = LiveRow(**{field.name: line[field.name] for field in fields(LiveRow)})
        if (row.system, row.budget, row.problem) in seen:
            raise InputError(
                f"{path}: {row.problem!r} in {row.budget:g} s by {row.system!r} is there twice",
                remedy="keep one of the two lines",
            )
        seen.add((row.system, row.budget, row.problem))
        rows.append(row)
    return rows


def save_times(out: Path, times: Mapping[str, tuple[StepTimes, int]], prompts: Mapping[str, int]) -> None:
    """Write step times and rows of every system, and the prompts' lengths. Errors: OutputError."""
    whole = {
        "systems": {name: asdict(each) | {"width": width} for name, (each, width) in times.items()},
        "prompt_tokens": dict(prompts),
    }
    atomic_write(out / TIMES, json.dumps(whole, indent=1) + "\n")


def load_times(out: Path) -> tuple[dict[str, tuple[StepTimes, int]], dict[str, int]]:
    """What `save_times` wrote; nothing where there is nothing."""
    if not (out / TIMES).is_file():
        return {}, {}
    whole: dict[str, Any] = json.loads((out / TIMES).read_text())
    times = {
        name: (StepTimes(tuple((int(r), float(s)) for r, s in each["steps"]), float(each["prefill"])), each["width"])
        for name, each in whole["systems"].items()
    }
    return times, {str(name): int(size) for name, size in whole["prompt_tokens"].items()}


def replayed(log: Recording, budget: float, orders: int = ORDERS) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[P] how often each problem is solved within ``budget`` seconds of its own, over random orders of its samples."""
    setting = Setting()
    scores = np.zeros(len(log.problems))
    for number in range(len(log.problems)):
        right = [replay(log, budget, setting, order, only=[number])[0].right for order in range(orders)]
        scores[number] = np.mean(right)
    return scores


def agreement(rows: Sequence[LiveRow], log: Recording) -> list[Agreement]:
    """Live against replay at every budget of ``log``'s system.

    Errors: InputError where a budget lacks problems, as in a run that was killed: let it finish first.
    """
    found = []
    for budget in sorted({row.budget for row in rows if row.system == log.system}):
        mine = {row.problem: row for row in rows if row.system == log.system and row.budget == budget}
        if missing := set(log.problems) - set(mine):
            raise InputError(
                f"{len(missing)} problems have no live answer in {budget:g} s", remedy="run thinkfast eval to its end"
            )
        live = np.array([float(mine[problem].correct) for problem in log.problems])
        again = replayed(log, budget)
        duel = paired(live, again)
        found.append(Agreement(log.system, budget, bootstrap(live), bootstrap(again), duel.value, duel.low, duel.high))
    return found
