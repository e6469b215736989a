"""Evaluate: systems x problems x samples into the sample log, under equal seconds, safe against `kill -9`.

Each system runs alone, on the same threads, one after another. Its clock starts when the model is loaded and warmed
up (a few decode steps whose chains are thrown away) and counts everything from there: prefill, sampling, answer
extraction and checking. Work goes in units of a few samples of every problem (`report.samples` says why). A run that
is killed goes on after its last whole unit, with that unit's clock, so that in all but the measured seconds its log
equals that of an undisturbed run. With a budget, a chain that is not finished and checked by then is dropped and
counted as cut, and no unit begins after it.

    evaluate(EvalConfig(models=("tiny", "mine=runs/d/model"), limit=20, n=8), Path("runs/eval")).systems
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from thinkfast.config import claim, to_dict
from thinkfast.data.problems import Problem, load_problems
from thinkfast.engine.plan import MemoryPlan
from thinkfast.errors import InputError, ProblemError, ThinkfastError
from thinkfast.files import atomic_write
from thinkfast.judge.answer import Equivalence, canonical_key
from thinkfast.judge.checker import Checker
from thinkfast.models.loading import find_model, read_spec
from thinkfast.models.spec import ModelSpec
from thinkfast.report.evalconfig import MARKER, EvalConfig, System, system_list
from thinkfast.report.samples import SAMPLES, Row, SampleLog
from thinkfast.report.systemrun import Start, SystemRecord, SystemRun

__all__ = ["EVAL", "EvalConfig", "Evaluation", "Start", "SystemRecord", "evaluate"]

EVAL = "eval.json"
DAMAGED = "remove the file and run thinkfast eval again: finished units are kept in the sample log"

_PLAIN = re.compile(r"-?\d+(/\d+)?")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A run: its folder, its config, and one record per system that is done."""

    out: Path
    config: EvalConfig
    systems: tuple[SystemRecord, ...]


def evaluate(
    config: EvalConfig,
    out: Path,
    *,
    on_load: Callable[[str], None] | None = None,
    on_plan: Callable[[MemoryPlan], None] | None = None,
    on_start: Callable[[Start], None] | None = None,
    on_chain: Callable[[Row], None] | None = None,
    checker: Equivalence | None = None,
) -> Evaluation:
    """Run `config` into the folder `out`; resumes, and returns at once where it is finished.

    Writes `samples.jsonl` (rows), `units.jsonl` (commits), `eval.yaml` (the config) and `eval.json` (the records).

    Arguments:
        on_load, on_plan, on_start, on_chain: progress: a system's model is being loaded, memory is about to be taken,
            its clock starts, a chain is judged; rows arrive as chains finish, before their unit is committed.
        checker: decides what keys cannot. None takes `judge.checker.Checker`, started before any clock; but where
            every gold answer is a plain number, keys decide and no checker runs.

    Errors: InputError for a bad number or two systems of one name, ModelError for an unusable model, ProblemError
    for duplicate ids, missing gold answers or an over-long question, OutputError for a folder of something else or
    of another config, CapacityError where the engine does not fit in memory.
    """
    config.validate()
    systems = system_list(config.models)
    specs = [read_spec(find_model(system.model)) for system in systems]
    problems = gradable(load_problems(config.problems, config.limit, config.problem_seed))
    before = set(out.iterdir()) if out.is_dir() else None
    claim(config, out, MARKER, "an evaluation with another config")
    try:
        return _evaluate(config, systems, specs, problems, out, on_load, on_plan, on_start, on_chain, checker)
    except ThinkfastError:
        if not before and not (out / EVAL).exists() and not _has_rows(out):  # a claim that nothing stands behind
            shutil.rmtree(out)
            if before is not None:
                out.mkdir()
        raise


def _has_rows(out: Path) -> bool:
    return (out / SAMPLES).is_file() and (out / SAMPLES).stat().st_size > 0


def _evaluate(
    config: EvalConfig,
    systems: list[System],
    specs: list[ModelSpec],
    problems: list[Problem],
    out: Path,
    on_load: Callable[[str], None] | None,
    on_plan: Callable[[MemoryPlan], None] | None,
    on_start: Callable[[Start], None] | None,
    on_chain: Callable[[Row], None] | None,
    checker: Equivalence | None,
) -> Evaluation:
    records = {record.name: record for record in _records(out)}
    with ExitStack() as stack:
        log = stack.enter_context(SampleLog(out))
        note = None
        if checker is None and not all(_PLAIN.fullmatch(canonical_key(problem.answer or "")) for problem in problems):
            checker = own = stack.enter_context(Checker())
            own.warm()
            note = own.note
        for system, spec in zip(systems, specs, strict=True):
            if system.name not in records:
                run = SystemRun(config, system, spec, problems, log, checker)
                if on_load is not None:
                    on_load(system.name)
                records[system.name] = run.go(on_plan, on_start, on_chain)
                _write(out, config, problems, list(records.values()), note)
    return Evaluation(out, config, tuple(records[system.name] for system in systems))


def gradable(problems: list[Problem]) -> list[Problem]:
    """`problems`, if every one has its own id and a gold answer.

    Errors: ProblemError naming the first that lacks it.
    """
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise ProblemError(f"two problems have the id {problem.id!r}", remedy="give every problem its own id")
        seen.add(problem.id)
        if problem.answer is None:
            raise ProblemError(
                f"problem {problem.id!r} has no gold answer, so it cannot be scored",
                remedy="add its answer or leave it out; thinkfast solve works without one",
            )
    return problems


def _records(out: Path) -> list[SystemRecord]:
    path = out / EVAL
    if not path.is_file():
        return []
    try:
        return [SystemRecord(**record) for record in read_eval(path)["systems"]]
    except TypeError as error:
        raise InputError(f"{path} is damaged: {error}", remedy=DAMAGED) from error


def read_eval(path: Path) -> dict[str, Any]:
    """What an evaluation's file holds. Errors: InputError where it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}", remedy=DAMAGED) from error
    kinds = {"config": dict, "systems": list, "problems": list}
    lost = [key for key, kind in kinds.items() if not isinstance(found, dict) or not isinstance(found.get(key), kind)]
    if lost:
        raise InputError(f"{path} is damaged: it has no {lost[0]}", remedy=DAMAGED)
    return cast(dict[str, Any], found)


def _write(
    out: Path, config: EvalConfig, problems: list[Problem], records: list[SystemRecord], note: str | None
) -> None:
    import torch

    from thinkfast.provenance import provenance

    shown = [
        {"id": p.id, "question": p.question, "answer": p.answer, "level": p.level, "subject": p.subject}
        for p in problems
    ]
    whole = {
        "version": 1,
        "config": to_dict(config),
        "systems": [asdict(record) for record in records],
        "threads": torch.get_num_threads(),
        "note": note,
        "provenance": provenance(config.seed),
        "problems": shown,
    }
    atomic_write(out / EVAL, json.dumps(whole, indent=1) + "\n")
