"""Merge evaluations of several machines into one: more samples of the same systems, or more systems.

Samples of one system may only be joined where everything but the seed is the same: weights, problems, sampling. Each
run's samples are numbered on from those of the run before; the seconds of such a system are those of one machine after
another, so its curve against seconds is what a single machine would have needed.

Usage: ``merge_runs([Path("a"), Path("b")], Path("all")); thinkfast report all``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from thinkfast.errors import InputError, OutputError
from thinkfast.files import atomic_write, require_output_dir
from thinkfast.report.evalconfig import MARKER
from thinkfast.report.evaluate import EVAL
from thinkfast.report.results import load_results
from thinkfast.report.samples import SAMPLES, Row, read_rows, row_dict

CLAIM = "# merged; not to be resumed\n"
FREE = ("models", "n", "seed", "seconds", "budgets", "voters", "max_batch", "unit", "device", "dtype")
"""Settings in which runs of other systems may differ; runs of the same system only in the first four and budgets."""
SAME_SYSTEM = ("models", "n", "seed", "seconds", "budgets", "voters")


def merge_runs(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write the merged log and `eval.json` into ``out``, and return the latter.

    Errors: InputError for fewer than two runs, other problems, settings or weights, or the same samples twice;
    OutputError.
    """
    if len(folders) < 2:
        raise InputError(f"{len(folders)} run to merge", remedy="name two folders or more")
    runs = [load_results(folder)["eval"] for folder in folders]
    for folder, run in zip(folders[1:], runs[1:], strict=True):
        _same_problems(folders[0], runs[0], folder, run)
        _same_settings(folders[0], runs[0], folder, run, FREE)
    systems: dict[str, dict[str, Any]] = {}
    origin: dict[str, list[tuple[Path, Mapping[str, Any]]]] = {}
    rows: list[Row] = []
    for folder, run in zip(folders, runs, strict=True):
        mine = read_rows(folder / SAMPLES)
        for record in run["systems"]:
            name = record["name"]
            before = systems.get(name)
            for other_folder, other in origin.get(name, []):
                _same_system(name, other_folder, other, folder, run, before or {}, record)
            first = before["complete_samples"] if before else 0
            clock = before["wall_seconds"] if before else 0.0
            part = [row for row in mine if row.system == name]
            if before:  # what a budget left incomplete would leave holes in the numbering
                rows = [row for row in rows if row.system != name or row.sample < first]
            rows += [replace(row, sample=row.sample + first, seconds=row.seconds + clock) for row in part]
            # Processors that were had on different machines say nothing of each other.
            systems[name] = (_joined(before, record) if before else dict(record)) | {"processors": None, "idle": None}
            origin.setdefault(name, []).append((folder, run))
    whole = dict(runs[0]) | {
        "systems": list(systems.values()),
        "config": dict(runs[0]["config"]) | {"models": list(systems), "merged": [str(folder) for folder in folders]},
    }
    if require_output_dir(out, MARKER, CLAIM) and ((out / EVAL).exists() or (out / MARKER).read_text() != CLAIM):
        raise OutputError(f"{out} holds an evaluation already", remedy="name a new folder with --out")
    atomic_write(out / SAMPLES, "".join(json.dumps(row_dict(row)) + "\n" for row in rows))
    atomic_write(out / EVAL, json.dumps(whole, indent=1) + "\n")
    read_rows(out / SAMPLES)  # no sample is there twice
    return whole


def _joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    sums = ("wall_seconds", "prompt_tokens", "generated_tokens", "samples", "complete_samples")
    joined = dict(one) | {name: one[name] + other[name] for name in sums} | {"cut": other["cut"]}
    wall = joined["wall_seconds"]
    return joined | {"tokens_per_second": joined["generated_tokens"] / wall if wall else 0.0, "ended": other["ended"]}


def _same_problems(a: Path, one: Mapping[str, Any], b: Path, other: Mapping[str, Any]) -> None:
    mine, theirs = ({p["id"]: (p["question"], p["answer"]) for p in run["problems"]} for run in (one, other))
    if mine != theirs:
        differ = next(name for name in [*mine, *theirs] if mine.get(name) != theirs.get(name))
        raise InputError(
            f"{a} and {b} are of different problems, for example {differ!r}",
            remedy="merge runs of the same problems and limit",
        )


def _same_settings(a: Path, one: Mapping[str, Any], b: Path, other: Mapping[str, Any], free: Sequence[str]) -> None:
    mine, theirs = one["config"], other["config"]
    for key in dict.fromkeys([*mine, *theirs]):
        if key not in free and mine.get(key) != theirs.get(key):
            raise InputError(
                f"{a} and {b} were run with another {key}: {mine.get(key)} and {theirs.get(key)}",
                remedy="merge runs of one config; only what says how much to sample may differ",
            )


def _same_system(
    name: str,
    a: Path,
    one: Mapping[str, Any],
    b: Path,
    other: Mapping[str, Any],
    before: Mapping[str, Any],
    record: Mapping[str, Any],
) -> None:
    _same_settings(a, one, b, other, SAME_SYSTEM)
    if before["sha"] != record["sha"]:
        raise InputError(
            f"{name!r} has other weights in {b} than in {a}", remedy="label them apart: --model other=PATH"
        )
    if one["config"].get("seed") == other["config"].get("seed"):
        raise InputError(
            f"{a} and {b} hold the same samples of {name!r}: both were drawn with seed {one['config'].get('seed')}",
            remedy="give every machine a seed of its own, as in: thinkfast eval … seed=1",
        )
