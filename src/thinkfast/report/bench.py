"""The bench: tokens per second of models in our engine and of a baseline, forced length, in turns in one run.

All contestants get the same random prompts and take turns (A, B, A, B, ...), so that a machine that slows down slows
all of them; a ratio is the median over rounds of two neighbours' seconds. Warm-up is not counted. Beside every figure
stands what the roofline allows on this machine, and beside the measured break-even the predicted one.

Usage: ``found = bench(BenchConfig(models=("tiny", "tiny-pure"))); found["student_vs_teacher"]``.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from thinkfast.config import to_dict
from thinkfast.engine.plan import MemoryPlan
from thinkfast.engine.runners import captured, fitted, plan_for
from thinkfast.errors import InputError
from thinkfast.models.loading import ASSETS, EMBEDDED, PRECISIONS, Loaded, load_as, require_device
from thinkfast.provenance import provenance
from thinkfast.report.benchconfig import STATES, BenchConfig, Case, RatioKind, State
from thinkfast.report.breakeven import Curve, Measured, break_even
from thinkfast.report.contestants import Contestant, Ours, Timing, Transformers, why_not_transformers
from thinkfast.report.energy import EnergyMeter, energy_meter
from thinkfast.report.evalconfig import system_list
from thinkfast.report.neighbours import Processors
from thinkfast.report.probe import PeakMemory, machine_profile
from thinkfast.report.roofline import ItemSizes, Machine, as_dict, decode_step
from thinkfast.report.stepcurve import step_curves

Say = Callable[[str], None]
WARM_UP_TOKENS = 4


def present(models: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """``models`` without embedded ones that this installation lacks, and a note for each of those."""
    missing = [m for m in models if m in EMBEDDED and not (ASSETS / m / "model.safetensors").is_file()]
    return tuple(m for m in models if m not in missing), [f"{m} is not there: left out" for m in missing]


# What a share above 100 % says, by device.
ABOVE = {
    "cpu": "a share above 100% means that the machine was slower while its rates were measured than while the model "
    "ran: run it again on a quiet machine; or that weights lie packed in bf16, half of what the bound counts",
    "cuda": "a share above 100% can be right for a student: states are written in every fourth step only, and the "
    "bound counts a write in each",
}
# Processors that others may have before figures are doubted: a system's own chores take a few hundredths.
_DISTURBED = 0.2


@dataclass(slots=True)
class Entry:
    """A contestant in one case and its runs so far; first_token: seconds until every chain had its first token;
    memory: most bytes held, weights included; joules: of each run, where the machine tells.
    """

    contestant: Contestant
    first_token: float
    memory: int | None
    runs: list[Timing]
    joules: list[float | None]

    @property
    def key(self) -> tuple[str, str]:
        """(system, engine)."""
        return self.contestant.system, self.contestant.engine


def bench(
    config: BenchConfig,
    say: Say | None = None,
    notes: Sequence[str] = (),
    on_plan: Callable[[str, MemoryPlan], None] | None = None,
) -> dict[str, Any]:
    """Run the whole grid; returns JSON-ready data, a superset of what the report takes as `bench`.

    say: progress. on_plan: each system's memory plan, before any of it is allocated.

    Errors: InputError, ModelError or CapacityError before anything is timed; ModelError for weights that give NaN.
    """
    config.validate()
    dtype, device = PRECISIONS[config.dtype], require_device(config.device)
    loaded = {s.name: fitted(load_as(s.model, config.dtype, device)) for s in system_list(config.models)}
    for name, one in loaded.items():
        if one.spec.n_attention and config.longest > one.spec.max_positions:
            raise InputError(
                f"prompts of {max(config.prompt_tokens)} and {max(config.new_tokens)} new tokens come to "
                f"{config.longest}, and {name} was made for {one.spec.max_positions} positions",
                remedy=f"pass --prompt and --new that come to {one.spec.max_positions} or less",
            )
    say = say or (lambda text: None)
    largest = max(config.batches), config.longest, config.widest_state
    plans = {name: plan_for(one.model, *largest) for name, one in loaded.items()}
    for name, plan in plans.items():
        if on_plan is not None:
            on_plan(name, plan)
    load = os.getloadavg()
    watch = Processors()
    say("measuring the machine")
    machine = machine_profile(device, dtype)
    with energy_meter(device) as meter:
        run = _Bench(config, loaded, machine, meter, say, notes=list(notes))
        for case in config.cases():
            run.case(case)
    curves = run.curves() if config.curve else {}
    if device.type == "cpu" and (taken := watch.taken() or 0.0) > _DISTURBED:
        run.notes.append(
            f"something else had {taken:.1f} of {os.cpu_count()} processors meanwhile: run it again on a quiet machine "
            "before you compare these figures"
        )
    if any((cell["bound_share"] or 0.0) > 1 for cell in run.cells):
        run.notes.append(ABOVE[device.type])
    return {
        "version": 1,
        "config": to_dict(config),
        **provenance(config.seed),
        "threads": torch.get_num_threads(),
        "load": {"before": load, "after": os.getloadavg()},
        "roofline": asdict(machine),
        "throughput": [cell for cell in run.cells if not cell["shared_prompt"]],
        "one_prompt": [cell for cell in run.cells if cell["shared_prompt"]],
        "ratios": run.ratios,
        "engine_vs_transformers": run.best("engine_vs_transformers"),
        "student_vs_teacher": run.best("student_vs_teacher"),
        "engine_vs_transformers_one_prompt": run.best("engine_vs_transformers", shared=True),
        "student_vs_teacher_one_prompt": run.best("student_vs_teacher", shared=True),
        "step_curves": {name: asdict(curve) | {"slope": curve.slope} for name, curve in curves.items()},
        "break_even": run.break_even(curves),
        "plans": {name: str(plan) for name, plan in plans.items()},
        "notes": run.notes,
    }


@dataclass(slots=True)
class _Bench:
    config: BenchConfig
    loaded: dict[str, Loaded]
    machine: Machine
    meter: EnergyMeter
    say: Say
    notes: list[str]
    cells: list[dict[str, Any]] = field(default_factory=list)
    ratios: list[dict[str, Any]] = field(default_factory=list)
    _baselines: dict[str, Transformers] = field(default_factory=dict)
    _first_token: dict[tuple[str, int], float] = field(default_factory=dict)

    def sizes(self, state: State | None = None) -> ItemSizes:
        """Bytes of an item with states as in a case."""
        size = PRECISIONS[self.config.dtype].itemsize
        weight = 1 if self.config.dtype == "fp8" else size
        # The plain engine keeps states in fp32, the captured one in the dtype of the weights.
        narrow = any(captured(one.spec, one.model.head_weight.device) for one in self.loaded.values())
        own = size if narrow else max(size, 4)
        return ItemSizes(weight, size, own if state is None else STATES[state].itemsize, size, size)

    @property
    def teacher(self) -> str | None:
        return next((name for name, one in self.loaded.items() if not one.spec.is_student), None)

    def case(self, case: Case) -> None:
        """Time every contestant in turns and note cells and ratios."""
        size = min(one.spec.vocab_size for one in self.loaded.values())
        generator = torch.Generator().manual_seed(self.config.seed)
        rows, samples = (1, case.batch) if case.shared else (case.batch, 1)
        prompts = torch.randint(0, size, (rows, case.prompt), generator=generator).tolist()
        entries: list[Entry] = []
        for make in self._makers(case):
            with PeakMemory(torch.device(self.config.device)) as memory:
                contestant = make()
                self.say(f"{contestant.system} in {contestant.engine}: {case}, round 1 of {self.config.repeats}")
                contestant.run(prompts, min(WARM_UP_TOKENS, case.new), samples)
                entry = Entry(contestant, contestant.run(prompts, 1, samples).seconds, None, [], [])
                self._run(entry, prompts, case, samples)
            # Another engine has loaded weights of its own in there; ours were loaded for all its cells before.
            shared = contestant.llm.plan.weight_bytes if isinstance(contestant, Ours) else 0
            entry.memory = None if memory.bytes is None else memory.bytes + shared
            entries.append(entry)
        for turn in range(1, self.config.repeats):
            for entry in entries:
                who = f"{entry.contestant.system} in {entry.contestant.engine}"
                self.say(f"{who}: {case}, round {turn + 1} of {self.config.repeats}")
                self._run(entry, prompts, case, samples)
        self.cells += [self._cell(case, entry) for entry in entries]
        self._compare(case, {entry.key: entry.runs for entry in entries})
        for entry in entries:
            if isinstance(entry.contestant, Ours) and not case.shared:
                self._first_token.setdefault((entry.contestant.system, case.batch), entry.first_token)

    def _run(self, entry: Entry, prompts: list[list[int]], case: Case, samples: int) -> None:
        mark = self.meter.mark()
        entry.runs.append(entry.contestant.run(prompts, case.new, samples))
        entry.joules.append(self.meter.since(mark))

    def _makers(self, case: Case) -> list[Callable[[], Contestant]]:
        """Contestants of a case, made when their turn comes; those to be compared stand beside each other."""
        makers: list[Callable[[], Contestant]] = []
        longest, state = case.prompt + case.new, None if case.state is None else STATES[case.state]
        for name, one in self.loaded.items():
            makers.append(partial(Ours, name, one, case.batch, longest, state))
            if self.config.against == "none" or case.new != self.config.new_tokens[0]:
                continue
            if case.shared and one.spec.is_student:  # minutes, for what the case of distinct prompts tells
                continue
            if why := why_not_transformers(one.spec):
                note = f"{name} has no transformers baseline: {why}"
                self.notes += [note] if note not in self.notes else []
                continue
            makers.append(partial(self._baseline, name, one))
        return makers

    def _baseline(self, name: str, one: Loaded) -> Transformers:
        if name not in self._baselines:
            self._baselines[name] = Transformers(name, one)
        return self._baselines[name]

    def _cell(self, case: Case, entry: Entry) -> dict[str, Any]:
        system, engine = entry.key
        step = statistics.median(run.ms_per_step for run in entry.runs)
        cost = decode_step(self.loaded[system].spec, case.batch, case.context, self.sizes(case.state))
        bound = 1e3 * cost.seconds(self.machine)
        told = [joules for joules in entry.joules if joules is not None]
        joules = statistics.median(told) if told else None
        return {
            "system": system,
            "engine": engine,
            "batch": case.batch,
            "shared_prompt": case.shared,
            "prompt_tokens": case.prompt,
            "new_tokens": case.new,
            "state": case.state,
            "tokens_per_second": statistics.median(run.tokens_per_second for run in entry.runs),
            "ms_per_step": step,
            "bound_ms_per_step": bound,
            "bound_share": bound / step if step else None,
            "cost": as_dict(cost, self.machine),
            "prefill_seconds": statistics.median(run.prefill_seconds for run in entry.runs),
            "decode_seconds": statistics.median(run.decode_seconds for run in entry.runs),
            "first_token_seconds": entry.first_token,
            "peak_bytes": entry.memory,
            "joules_per_token": joules / entry.runs[0].tokens if joules is not None else None,
            "step": entry.contestant.llm.step_path if isinstance(entry.contestant, Ours) else None,
            "plan_bytes": entry.contestant.plan_bytes if isinstance(entry.contestant, Ours) else None,
            "runs": [asdict(run) for run in entry.runs],
        }

    def _compare(self, case: Case, runs: dict[tuple[str, str], list[Timing]]) -> None:
        for name, one in self.loaded.items():
            ours = runs[name, Ours.engine]
            if other := runs.get((name, Transformers.engine)):
                self._ratio("engine_vs_transformers", name, case, other, ours)
            if one.spec.is_student and self.teacher is not None:
                self._ratio("student_vs_teacher", name, case, runs[self.teacher, Ours.engine], ours)

    def _ratio(self, kind: RatioKind, system: str, case: Case, slow: Sequence[Timing], fast: Sequence[Timing]) -> None:
        rounds = [a.seconds / b.seconds for a, b in zip(slow, fast, strict=True)]
        # A run of a millisecond may have used none of the processor, as far as its clock tells.
        counted = [(a.cpu_seconds, b.cpu_seconds) for a, b in zip(slow, fast, strict=True)]
        cpu = statistics.median(a / b for a, b in counted) if all(b for _, b in counted) else None
        who = f"{system} vs {Transformers.engine if kind == 'engine_vs_transformers' else self.teacher}"
        promised = kind == "student_vs_teacher" or system == self.teacher
        self.ratios.append(
            {"name": f"{who}: {case}", "kind": kind, "system": system}
            | {"batch": case.batch, "shared_prompt": case.shared, "prompt_tokens": case.prompt, "new_tokens": case.new}
            | {"state": case.state}
            | {"value": statistics.median(rounds), "cpu_value": cpu, "rounds": rounds}
            | {"wanted": self.config.wanted(kind, case) if promised else None}
        )

    def best(self, kind: RatioKind, shared: bool = False) -> dict[str, float]:
        """A kind's ratio by system, at the largest batch and the most new tokens it was measured at."""
        found = [ratio for ratio in self.ratios if (ratio["kind"], ratio["shared_prompt"]) == (kind, shared)]
        found.sort(key=lambda ratio: (ratio["batch"], ratio["new_tokens"]))
        return {ratio["system"]: ratio["value"] for ratio in found}

    def curves(self) -> dict[str, Curve]:
        """Step time against context of every model, at the largest batch."""
        turns = min(2, self.config.repeats)
        return step_curves(self.loaded, max(self.config.batches), self.config.longest, turns, self.say)

    def break_even(self, curves: dict[str, Curve]) -> list[dict[str, Any]]:
        """Where each student overtakes its teacher: predicted, measured, and by the bound alone."""
        if self.teacher is None or not curves or not self._first_token:
            return []
        # The prompts whose first token was timed.
        batch, prompt, new = max(self.config.batches), self.config.prompt_tokens[0], max(self.config.new_tokens)
        measured = {
            name: Measured(one.spec, self._first_token[name, batch], curves[name]) for name, one in self.loaded.items()
        }
        return [
            {"student": name, "teacher": self.teacher, "batch": batch, "prompt_tokens": prompt}
            | break_even(measured[self.teacher], measured[name], batch, prompt, new, self.sizes(), self.machine)
            for name, one in self.loaded.items()
            if one.spec.is_student
        ]
