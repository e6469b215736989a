"""Forks a child per job, so that a test can kill real training runs without paying torch's import each time.

Reads one JSON job a line on stdin; answers with the child's pid, then with its exit status (negative: the signal).
A job may name where its child kills itself: at an optimiser step, or at the n-th time something reaches the disk.

Usage: ``python zygote.py``, then ``{"kind": "stage", "folder": "/tmp/x", "die_at_step": 7}``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what the first optimiser step imports, and takes seconds for

import thinkfast.files
from thinkfast.data.corpus import Corpus
from thinkfast.data.pool import Example, Pool
from thinkfast.distill.recipe import DataConfig, Recipe, StageConfig
from thinkfast.distill.run import run_recipe
from thinkfast.distill.stages import make_stage
from thinkfast.distill.trainer import train_stage
from thinkfast.models.decoder import Decoder, init_weights
from thinkfast.models.spec import ModelSpec

STEPS = 24


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Countdown:
    """Dies at the n-th call; never where n is None."""

    def __init__(self, n: int | None) -> None:
        self.left = n

    def tick(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                die()


def stage_job(job: dict[str, Any], steps: Countdown) -> None:
    """Align a random hybrid to a random teacher for STEPS steps, with a checkpoint every `save_every` seconds."""
    spec = ModelSpec(40, 24, 4, 2, 6, 32, ("attention",) * 3)
    teacher, student = Decoder(spec).requires_grad_(False), Decoder(spec.as_student((1,)))
    init_weights(teacher, 0)
    init_weights(student, 1)
    generator = torch.Generator().manual_seed(2)
    texts = torch.randint(0, 40, (30, 20), generator=generator).tolist()
    corpus = Corpus(Pool.of(Example(tuple(t), 5) for t in texts), tokens_per_batch=60, seed=3)
    config = StageConfig("align", 60.0 * STEPS, 1e-2, 60, optimiser=job.get("optimiser", "adamw"))
    folder = Path(job["folder"])
    folder.mkdir(exist_ok=True)
    train_stage(
        make_stage(config, student, teacher),
        student,
        corpus,
        folder,
        save_every=job.get("save_every", 0.0),
        on_step=lambda _: steps.tick(),
    )


def recipe_job(job: dict[str, Any], steps: Countdown) -> None:
    """Orient, align and imitate by run_recipe, a few steps each."""
    names = ("orient", "align", "imitate")
    recipe = Recipe(
        "killed",
        tuple(StageConfig(name, 256.0 * 3, 1e-3, 256) for name in names),  # type: ignore[arg-type]
        teacher=job["teacher"],
        keep=(1,),
        data=DataConfig(pool=24, difficulties=(2,)),
        save_every=0.0,
    )
    run_recipe(recipe, Path(job["folder"]), on_step=lambda _: steps.tick())


def run(job: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    writes = Countdown(job.get("die_at_write"))
    # Counted instead of done: only a power cut can tell, and a busy disk takes a tenth of a second each time.
    thinkfast.files._sync = lambda _: writes.tick()
    {"stage": stage_job, "recipe": recipe_job}[job["kind"]](job, Countdown(job.get("die_at_step")))


def main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                run(json.loads(line))
                status = 0
            except BaseException:
                traceback.print_exc()
            os._exit(status)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
