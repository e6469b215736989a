"""Several recipes at once, one process each, with their progress in one place.

Small models leave a core idle between small operations, so two students on one core each learn faster than one after
another on both. A worker dies with its parent, whatever kills that: a run started again finds nobody at its files.

Usage: ``run_parallel([(recipe, out), ...], threads=1, on_step=..., on_gate=...)``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from thinkfast.distill.gates import GateResult
from thinkfast.distill.recipe import Recipe
from thinkfast.distill.run import RunResult, run_recipe
from thinkfast.distill.trainer import StepEvent
from thinkfast.errors import ThinkfastError

Job = tuple[Recipe, Path]
_PR_SET_PDEATHSIG = 1


def run_parallel(
    jobs: Sequence[Job],
    *,
    threads: int,
    on_step: Callable[[str, StepEvent], None] | None = None,
    on_gate: Callable[[str, GateResult], None] | None = None,
) -> list[RunResult]:
    """``run_recipe`` on every job, each in its own process with ``threads`` torch threads.

    Callbacks get the recipe's name first. Results come in the order of the jobs. Errors: the first ThinkfastError of
    any worker, after the others were stopped; RuntimeError where a worker died without one.
    """
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, tuple[int, Any]] = {}
    results: dict[int, RunResult] = {}
    try:
        for i, (recipe, out) in enumerate(jobs):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(recipe, out, threads, theirs, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = (i, process)
        while workers:
            for ready in wait(list(workers)):
                connection = ready if isinstance(ready, Connection) else None
                if connection is None:
                    continue
                i, process = workers[connection]
                try:
                    message = connection.recv()
                except EOFError:
                    process.join()
                    if i not in results:
                        raise RuntimeError(f"distilling {jobs[i][0].name} ended with code {process.exitcode}") from None
                    del workers[connection]
                    continue
                if isinstance(message, StepEvent) and on_step is not None:
                    on_step(jobs[i][0].name, message)
                elif isinstance(message, GateResult) and on_gate is not None:
                    on_gate(jobs[i][0].name, message)
                elif isinstance(message, RunResult):
                    results[i] = message
                elif isinstance(message, ThinkfastError):
                    raise message
    finally:
        for _, process in workers.values():
            process.kill()
            process.join()
    return [results[i] for i in range(len(jobs))]


def _work(recipe: Recipe, out: Path, threads: int, connection: Connection, parent: int) -> None:
    _die_with_parent(parent)
    import torch

    torch.set_num_threads(threads)
    try:
        connection.send(run_recipe(recipe, out, on_step=connection.send, on_gate=connection.send))
    except ThinkfastError as error:
        connection.send(error)
    except BrokenPipeError:
        os._exit(1)  # the parent is gone; nobody is left to be told
    finally:
        connection.close()


def _die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process with its parent; elsewhere the broken pipe ends it within one step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    with suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
