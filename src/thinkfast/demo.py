"""The demo: the whole loop on one machine, offline, from the embedded teacher to a report.

The teacher solves a problem, two students are distilled from it with every stage and gate, all systems answer the
same problems under the same seconds, and the report says who won at which budget, also where a student loses. A run
that is killed goes on where it was: the distillations and the evaluation each keep their own account.

Usage: ``run_demo(DemoConfig(quick=True), Path("runs/demo"), console)``.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from thinkfast.config import claim
from thinkfast.distill.recipe import DataConfig, Recipe, StageConfig
from thinkfast.errors import InputError
from thinkfast.files import atomic_path, atomic_write

MARKER = "demo.yaml"
LEVELS = (3, 4, 5)
SHIPPED = ("tiny-hybrid", "tiny-pure")


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """How long the demo takes: ``share`` scales the tokens of every stage; seconds are each system's budget;
    speed is measured on ``bench_batch`` chains of ``bench_tokens``.
    """

    share: float = 1.0
    problems: int = 48
    n: int | None = None
    seconds: float = 12.0
    temperature: float = 0.6
    seed: int = 0
    gates: bool = True
    bench_batch: int = 64
    bench_tokens: int = 512

    def validate(self) -> None:
        """Refuse figures out of range."""
        if not 0 < self.share <= 100:
            raise ValueError(f"share is {self.share}, it must lie between 0 and 100")
        if not 0 < self.seconds < float("inf"):
            raise InputError(f"seconds is {self.seconds}", remedy="pass a positive number, such as --seconds 20")
        if self.problems < 1 or (self.n is not None and self.n < 1):
            raise InputError(f"{self.problems} problems x {self.n} samples", remedy="ask for at least 1 of each")


QUICK = DemoConfig(share=0.04, problems=24, seconds=5.0, gates=False, bench_tokens=96)


def demo_recipe(name: str, keep: tuple[int, ...], config: DemoConfig) -> Recipe:
    """The recipe of a live student: the stages of ``recipes/tiny-*.yaml`` with a laptop's tokens and batches."""

    def tokens(full: float, batch: int) -> float:
        return max(float(batch), full * config.share)

    def gate(value: float) -> float | None:
        return value if config.gates else None

    # The pure student has more to learn and gets most of the time.
    align, imitate = (180e3, 270e3) if keep else (450e3, 850e3)
    batch = 1024
    mixers = partial(StageConfig, batch_tokens=batch, train="mixers", optimiser="muon", vector_lr=4.0)
    stages = (
        mixers("orient", tokens(20e3, batch), 4e-3, gate=gate(0.75)),
        mixers("align", tokens(align, batch), 8e-3, gate=gate(0.2)),
        mixers("imitate", tokens(imitate, batch), 1.5e-3, gate=gate(0.93), hidden=4.0),
        StageConfig("sft", tokens(20e3, batch), 5e-5, batch, train="mixers", gate=gate(0.4)),
    )
    pool = max(64, round(8000 * min(1.0, config.share)))
    return Recipe(
        name=name,
        stages=stages,
        teacher="tiny",
        keep=keep,
        seed=config.seed,
        data=DataConfig(pool=pool, difficulties=LEVELS),
        eval_problems=64,
        save_every=5.0,
        parts=2,
    )


def run_demo(config: DemoConfig, out: Path, console: Console, command: str = "thinkfast demo") -> dict[str, Any]:
    """Run, or go on with, the demo in ``out`` and return its results.

    Errors: OutputError for a folder of something else or of another demo, GateError with the figure where a stage
    misses its gate.
    """
    config.validate()
    claim(config, out, MARKER, "a demo with other settings")
    import torch

    from thinkfast.commands._evalview import EvalView, print_result
    from thinkfast.provenance import peak_memory_gib, provenance
    from thinkfast.report.evaluate import EvalConfig, evaluate
    from thinkfast.report.render import render_report
    from thinkfast.report.samples import SAMPLES

    started = time.monotonic()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(cores)
    console.rule("1  the teacher thinks", align="left")
    _show_teacher(console, config)

    console.rule("2  two students learn from it", align="left")
    recipes = {"hybrid": demo_recipe("hybrid", (3,), config), "pure": demo_recipe("pure", (), config)}
    _distill(recipes, out, console)

    console.rule(f"3  all answer the same {config.problems} problems in {config.seconds:g} s each", align="left")
    shipped = [name for name in SHIPPED if _present(name)]
    evaluation = EvalConfig(
        models=("tiny", *(f"{name}={out / name / 'model'}" for name in recipes), *shipped),
        limit=config.problems,
        n=config.n,
        seconds=config.seconds,
        temperature=config.temperature,
        max_tokens=400,
        max_batch=128,
        seed=config.seed,
    )
    with EvalView(evaluation, console) as view:
        evaluate(evaluation, out / "eval", on_load=view.load, on_start=view.start, on_chain=view.chain)

    console.rule("4  the report", align="left")
    with atomic_path(out / SAMPLES) as temp:
        shutil.copyfile(out / "eval" / SAMPLES, temp)
    labels = {"hybrid": "now", "pure": "now", **dict.fromkeys(shipped, "full")}
    results: dict[str, Any] = {
        "version": 1,
        "command": command,
        "eval": json.loads((out / "eval" / "eval.json").read_text()),
        "systems": {"tiny": {"label": "teacher (tiny)"}}
        | {
            name: {"label": f"{name.removeprefix('tiny-')}, distilled {'just now' if how == 'now' else 'fully'}"}
            | {"distilled": how}
            for name, how in labels.items()
        },
        "distillation": {name: json.loads((out / name / "results.json").read_text()) for name in recipes},
        "provenance": provenance(config.seed),
        "seconds": time.monotonic() - started,
    }
    bench = out / "bench.json"
    if not bench.is_file():
        atomic_write(bench, json.dumps(_bench(out, list(recipes), config)) + "\n")
    results["bench"] = json.loads(bench.read_text())
    results["peak_memory_gib"] = peak_memory_gib()
    atomic_write(out / "results.json", json.dumps(results) + "\n")
    print_result(results, out, render_report(results, out), console)
    console.print(f"students: {out / 'hybrid' / 'model'}, {out / 'pure' / 'model'}")
    peak = peak_memory_gib()
    held = "" if peak is None else f" and at most {peak:.2f} GiB of memory"
    console.print(f"the demo took {time.monotonic() - started:.0f} s{held}")
    return results


def _present(name: str) -> bool:
    from thinkfast.models.loading import ASSETS

    return (ASSETS / name / "model.safetensors").is_file()


def _show_teacher(console: Console, config: DemoConfig) -> None:
    """One problem, the teacher's chains as they finish, and their vote."""
    from thinkfast.data.problems import load_problems
    from thinkfast.engine.llm import LLM
    from thinkfast.engine.request import Chain, SamplingParams
    from thinkfast.judge.answer import extract_answer, judge

    problem = load_problems("tiny_val", 1, seed=config.seed + 1)[0]
    console.print(f"[bold]{problem.question}[/bold]", highlight=False)
    gold = problem.answer or ""
    votes: dict[str, int] = {}

    def on_chain(chain: Chain) -> None:
        answer = extract_answer(chain.text) or "no answer"
        if not votes:
            console.print(f"[dim]{chain.text}[/dim]", highlight=False)
        votes[answer] = votes.get(answer, 0) + 1

    llm = LLM("tiny", max_batch=16)
    began = time.monotonic()
    llm.generate(
        [problem.question],
        SamplingParams(n=16, temperature=1.0, max_tokens=400, seed=config.seed),
        on_chain=on_chain,
    )
    counted = ", ".join(f"{a} x{c}" for a, c in sorted(votes.items(), key=lambda kv: -kv[1])[:5])
    best = max(votes, key=lambda answer: votes[answer])
    right = "right" if judge(f"\\boxed{{{best}}}", gold).correct else f"wrong, it is {gold}"
    console.print(f"16 chains in {time.monotonic() - began:.1f} s vote: {counted}; the majority is {right}")


def _distill(recipes: dict[str, Recipe], out: Path, console: Console) -> None:
    from thinkfast.commands._distillview import DistillView
    from thinkfast.distill.parallel import run_parallel

    jobs = [(recipe, out / name) for name, recipe in recipes.items()]
    with DistillView(recipes, console) as view:
        run_parallel(jobs, on_step=view.step, on_gate=view.gate, on_note=view.note)


def _bench(out: Path, students: list[str], config: DemoConfig) -> dict[str, Any]:
    """Speed of the live students beside their teacher's, and predicted beside measured break-even."""
    from thinkfast.report.bench import bench
    from thinkfast.report.benchconfig import BenchConfig

    models = ("tiny", *(f"{name}={out / name / 'model'}" for name in students))
    return bench(
        BenchConfig(
            models=models,
            batches=(config.bench_batch,),
            new_tokens=(config.bench_tokens,),
            repeats=1,
            against="none",
            seed=config.seed,
        )
    )
