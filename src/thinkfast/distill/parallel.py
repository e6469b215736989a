"""Several recipes side by side on one set of cores, with their progress in one place.

Each run is a thread that hands the parts of its batches to shared threads, one a core. No core waits for a run's
slowest part or for its optimiser while another run has a part to do, and when one run is done the cores are the
others'. What is learnt is what each recipe would learn alone.

Usage: ``run_parallel([(recipe, out), ...], on_step=..., on_gate=...)``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import torch

from thinkfast.distill.gates import GateResult
from thinkfast.distill.gradients import part_threads
from thinkfast.distill.recipe import Recipe
from thinkfast.distill.run import RunResult, run_recipe
from thinkfast.distill.trainer import StepEvent

Job = tuple[Recipe, Path]


class _Stopped(Exception):
    """Another run has failed, or the user has had enough."""


def run_parallel(
    jobs: Sequence[Job],
    *,
    on_step: Callable[[str, StepEvent], None] | None = None,
    on_gate: Callable[[str, GateResult], None] | None = None,
    on_note: Callable[[str, str], None] | None = None,
) -> list[RunResult]:
    """``run_recipe`` on every job, on the CPU, all at once; on as many cores as torch has threads.

    Callbacks get the recipe's name first and come from the runs' own threads, one at a time. Results come in the order
    of the jobs. Errors: the first error of any run, after the others were stopped at their next step; each can go on.
    """
    lock, stop = threading.Lock(), threading.Event()

    def step(name: str, event: StepEvent) -> None:
        if stop.is_set():
            raise _Stopped
        if on_step is not None:
            with lock:
                on_step(name, event)

    def gate(name: str, result: GateResult) -> None:
        if on_gate is not None:
            with lock:
                on_gate(name, result)

    def note(name: str, text: str) -> None:
        if on_note is not None:
            with lock:
                on_note(name, text)

    with part_threads(torch.get_num_threads()) as threads, ThreadPoolExecutor(len(jobs), "run") as runs:
        futures: list[Future[RunResult]] = []
        try:
            for recipe, out in jobs:
                on_step_, on_gate_, on_note_ = (partial(each, recipe.name) for each in (step, gate, note))
                run = partial(run_recipe, threads=threads, on_step=on_step_, on_gate=on_gate_, on_note=on_note_)
                futures.append(runs.submit(run, recipe, out))
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    errors = [e for e in (f.exception() for f in futures) if e is not None]
    for error in sorted(errors, key=lambda e: isinstance(e, _Stopped)):
        raise error
    return [future.result() for future in futures]
