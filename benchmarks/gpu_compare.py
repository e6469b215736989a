"""Which of several versions of the code decodes faster on a GPU: whole steps, a process a version, timed in turn.

    git worktree add /tmp/new my-branch
    export PYTHONPATH=src
    python3 benchmarks/gpu_compare.py --versions now=. new=/tmp/new --models random:llama-3.2-1b/pure-d16 \
        --rows 256 512 --out /tmp/compared.json

A version is LABEL=FOLDER, a checkout with src/ in it, or LABEL=FOLDER,STATEMENTS: Python that its process runs before
the engine is built, so that a setting can be tried without a checkout of its own, for instance

    "four=.,from thinkfast.kernels.triton import norm; norm._warps = lambda width: 4"

Two figures for each: ms a step of a chip at rest (the best of --rounds times 40 steps, each after a pause) and hot (the
median of as many times 80, all versions in turn, the order reversed each time), because at many rows an H100 slows
down at its power limit within a second. Less than half a percent is noise; machines differ by more than that.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_long import runner, timed
from publish import publish

from thinkfast.engine.cuda.runner import CudaRunner
from thinkfast.models.loading import load_model
from thinkfast.provenance import source

HERE = Path(__file__).resolve().parent
ANSWER, FAILED = "answer", "failed"
FIRST_STEPS, REST_STEPS, WARM_STEPS, HOT_STEPS = 10, 40, 100, 80
PAUSE = 0.1


def work() -> None:
    """Make a runner and time it: one line in, one line out."""
    run: CudaRunner | None = None
    for line in sys.stdin:
        try:
            match line.split():
                case ["do", *rest]:
                    # In a namespace of its own: functions that it defines find there what it imports.
                    exec(" ".join(rest), {})
                    told: object = "done"
                case ["make", model, rows, length]:
                    run = None
                    torch.cuda.empty_cache()
                    run = runner(load_model(model, torch.bfloat16, "cuda"), int(rows), int(length), "bf16", 0)
                    timed(run, FIRST_STEPS)
                    told = "made"
                case ["time", steps] if run is not None:
                    told = timed(run, int(steps))
                case _:
                    raise ValueError(line)
            print(ANSWER, told, flush=True)
        except (Exception, SystemExit) as error:  # noqa: BLE001 a version that fails must not cost the others
            print(FAILED, repr(error).replace("\n", " ")[:300], flush=True)


class Version:
    """The process of one version."""

    def __init__(self, label: str, folder: str, statements: str) -> None:
        code = Path(folder).resolve() / "src"
        self.label, self.source = label, source(code / "thinkfast")
        path = os.pathsep.join((str(code), str(HERE)))
        command = [sys.executable, __file__, "--work"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        if statements:
            self.say("do " + statements.replace("\n", " "))
            self.hear()

    def say(self, line: str) -> None:
        """Ask without waiting."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        """The next answer; what the libraries print in between is passed over."""
        for line in self._process.stdout or ():
            kind, _, told = line.rstrip("\n").partition(" ")
            if kind == ANSWER:
                return told
            if kind == FAILED:
                raise RuntimeError(f"{self.label}: {told}")
        raise RuntimeError(f"{self.label}: its process ended with {self._process.wait()}")

    def time(self, steps: int) -> float:
        """ms a step."""
        self.say(f"time {steps}")
        return float(self.hear())


def compared(versions: list[Version], model: str, rows: int, rounds: int) -> Iterator[dict[str, Any]]:
    """The figures of each version that can run ``rows`` rows of ``model``."""
    # Chains that outlast all of it: a row that has ended would make later steps faster.
    length = FIRST_STEPS + WARM_STEPS + rounds * (REST_STEPS + HOT_STEPS) + 16
    there = []
    for version in versions:
        version.say(f"make {model} {rows} {length}")
    for version in versions:
        try:
            version.hear()
            there.append(version)
        except RuntimeError as error:
            print(error, flush=True)
    rest: dict[str, list[float]] = {version.label: [] for version in there}
    hot: dict[str, list[float]] = {version.label: [] for version in there}
    for _ in range(rounds):
        for version in there:
            time.sleep(PAUSE)
            rest[version.label].append(version.time(REST_STEPS))
    # All of them, so that their contexts stay equally long.
    for version in there:
        version.time(WARM_STEPS)
    for turn in range(rounds):
        for version in there if turn % 2 else there[::-1]:
            hot[version.label].append(version.time(HOT_STEPS))
    for version in there:
        label = version.label
        yield {
            "model": model, "rows": rows, "version": label, "source": version.source, "rest_ms": min(rest[label]),
            "hot_ms": median(hot[label]), "rest": rest[label], "hot": hot[label],
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", required=True, metavar="LABEL=FOLDER[,STATEMENTS]")
    parser.add_argument("--models", nargs="+", default=["random:llama-3.2-1b/pure-d16"])
    parser.add_argument("--rows", nargs="+", type=int, default=[256, 512])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this needs a CUDA GPU")
    versions = []
    for text in options.versions:
        label, _, rest = text.partition("=")
        folder, _, statements = rest.partition(",")
        if not (Path(folder) / "src" / "thinkfast").is_dir():
            raise SystemExit(f"{text}: {folder or 'an empty name'} is no checkout; write LABEL=FOLDER, as in now=.")
        try:
            versions.append(Version(label, folder, statements))
        except RuntimeError as error:
            raise SystemExit(str(error)) from None
    steps: list[dict[str, Any]] = []
    for model in options.models:
        for rows in options.rows:
            found = list(compared(versions, model, rows, options.rounds))
            steps += found
            told = (f"{one['version']} {one['rest_ms']:.3f} {one['hot_ms']:.3f}" for one in found)
            print(f"{model} {rows}", *told, sep=" | ", flush=True)
    publish({"steps": steps}, options.out, unprinted=("steps",))


if __name__ == "__main__":
    if sys.argv[1:] == ["--work"]:
        work()
    else:
        main()
