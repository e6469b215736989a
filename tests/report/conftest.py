"""Made-up evaluations: results and rows as a real run leaves them, from known chances of being right."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from thinkfast.report.samples import Row
from thinkfast.report.systemrun import SystemRecord


@dataclass(frozen=True)
class Made:
    """A made-up system: skill in 0..1, tokens per second, seconds it was given (None: until n samples are there)."""

    name: str
    family: str = "teacher"
    skill: float = 0.5
    speed: float = 4000.0
    distilled: str = ""


Make = Callable[..., tuple[dict[str, Any], list[Row]]]

CHAIN = (
    "First, the shop sells {a} boxes with {b} pens each, so {a} * {b} = {c} pens. Then {d} of the pens are given "
    "away, which leaves {c} - {d} = {e}. <b>&amp; careful</b> The answer is \\boxed{{{e}}}."
)


def make(
    systems: Sequence[Made] = (Made("tiny"), Made("tiny-hybrid", "hybrid", 0.48, 9000.0)),
    problems: int = 12,
    n: int = 8,
    seconds: float | None = None,
    seed: int = 0,
    distillation: bool = False,
    bench: bool = False,
) -> tuple[dict[str, Any], list[Row]]:
    rng = random.Random(seed)
    asked = [
        {
            "id": f"tiny-test-{i:04d}",
            "question": f"A shop sells {i + 2} boxes of pens <script>alert(1)</script> & more. How many are left?",
            "answer": str(10 + i),
            "level": 4 + i % 3,
            "subject": "shopping",
        }
        for i in range(problems)
    ]
    hardness = [rng.betavariate(1.1, 1.1) for _ in asked]
    rows: list[Row] = []
    records = []
    for system in systems:
        mine, clock, tokens_all, cut = [], 0.0, 0, 0
        for first in range(0, n, 4):
            for i, problem in enumerate(asked):
                for sample in range(first, min(first + 4, n)):
                    tokens = rng.randint(60, 220)
                    clock += tokens / system.speed
                    tokens_all += tokens
                    if seconds is not None and clock > seconds:
                        cut += 1
                        continue
                    chance = min(max(system.skill + 0.9 * (0.5 - hardness[i]), 0.0), 1.0) if system.skill else 0.0
                    right = rng.random() < chance
                    value = str(problem["answer"]) if right else str(100 + int(rng.random() ** 2 * 6))
                    silent = not right and rng.random() < 0.15
                    text = CHAIN.format(a=i + 2, b=7, c=7 * i + 14, d=3, e=value)
                    row = Row(
                        system=system.name,
                        problem=str(problem["id"]),
                        sample=sample,
                        tokens=tokens,
                        text=text[:90] if silent else text,
                        answer=None if silent else value,
                        key=None if silent else f"number:{value}",
                        correct=right,
                        finish="length" if silent else "stop",
                        logprob=-0.1 * tokens,
                        seconds=round(clock, 6),
                    )
                    mine.append(row)
        whole = min((sum(r.problem == p["id"] for r in mine) for p in asked), default=0) // 4 * 4
        record = SystemRecord(
            name=system.name,
            model=f"assets/{system.name}",
            sha="0" * 64,
            family=system.family,
            parameters=1_869_504,
            load_seconds=0.4,
            wall_seconds=min(clock, seconds or clock),
            prompt_tokens=70 * problems,
            generated_tokens=tokens_all,
            tokens_per_second=system.speed,
            samples=len(mine),
            complete_samples=n if not cut else whole,
            cut=cut,
            ended="seconds" if cut else "n",
        )
        records.append(asdict(record))
        rows += mine
    results: dict[str, Any] = {
        "version": 1,
        "command": "thinkfast demo --out runs/demo",
        "eval": {
            "version": 1,
            "config": {"models": [s.name for s in systems], "problems": "tiny_test", "n": n, "seconds": seconds},
            "systems": records,
            "threads": 2,
            "provenance": {
                "machine": {
                    "cpu": "A CPU @ 2.0 GHz",
                    "cores": 2,
                    "memory_gib": 24.0,
                    "os": "Linux",
                    "accelerator": None,
                },
                "versions": {"python": "3.11.7", "thinkfast": "0.1.0", "torch": "2.13.0"},
                "commit": "37df4bf0123456789",
                "seed": 0,
            },
            "problems": asked,
        },
        "systems": {s.name: {"distilled": s.distilled} for s in systems if s.distilled},
    }
    if distillation:
        results["distillation"] = {s.name: _distilled(s.name, rng) for s in systems if s.family != "teacher"}
    if bench:
        results["bench"] = _bench(systems)
    return results, rows


def _distilled(name: str, rng: random.Random) -> dict[str, Any]:
    stages = {"0-orient": (0.9, 0.2), "1-align": (0.7, 0.08), "2-imitate": (1.4, 0.05), "3-sft": (0.16, 0.1)}
    losses = {
        key: [
            {
                "step": i,
                "tokens": (i + 1) * 8192,
                "loss": low + (high - low) * 0.96**i + rng.random() * 0.1 * low,
                "lr": 1e-3,
            }
            for i in range(120)
        ]
        for key, (high, low) in stages.items()
    }
    gates = [
        {"stage": "orient", "figure": "relative error", "value": 0.31, "bound": 0.5, "higher_is_better": False},
        {"stage": "align", "figure": "relative error", "value": 0.12, "bound": 0.2, "higher_is_better": False},
        {"stage": "imitate", "figure": "agreement", "value": 0.97, "bound": 0.9, "higher_is_better": True},
        {"stage": "sft", "figure": "share of the teacher's", "value": 0.84, "bound": None, "higher_is_better": True},
    ]
    return {
        "name": name,
        "teacher": {"name": "tiny", "sha256": "0" * 64},
        "parameters": 1_700_000,
        "gates": gates,
        "seconds": 142.5,
        "losses": losses,
    }


def _bench(systems: Sequence[Made]) -> dict[str, Any]:
    throughput = []
    for system in systems:
        for tokens in (64, 128, 256, 512, 1024):
            speed = system.speed / (1 + (tokens / 700 if system.family == "teacher" else tokens / 9000))
            throughput.append(
                {
                    "system": system.name,
                    "engine": "thinkfast",
                    "batch": 64,
                    "prompt_tokens": 64,
                    "new_tokens": tokens,
                    "tokens_per_second": speed,
                }
            )
        throughput += [
            {
                "system": system.name,
                "engine": "thinkfast",
                "batch": batch,
                "prompt_tokens": 64,
                "new_tokens": 256,
                "tokens_per_second": system.speed * batch / (batch + 20),
            }
            for batch in (1, 4, 16)
        ]
    teacher, student = systems[0].name, systems[-1].name
    throughput.append(
        {
            "system": teacher,
            "engine": "transformers",
            "batch": 64,
            "prompt_tokens": 64,
            "new_tokens": 256,
            "tokens_per_second": systems[0].speed / 4,
        }
    )
    return {
        "throughput": throughput,
        "break_even": [
            {"student": student, "teacher": teacher, "batch": 64, "predicted_tokens": 210.0, "measured_tokens": 256.0}
        ],
        "ratios": [{"name": "teacher against transformers generate, batch 64", "value": 3.6, "wanted": 3.0}],
    }


@pytest.fixture(scope="session")
def made() -> Make:
    """The function that makes results and rows."""
    return make


@pytest.fixture(scope="session")
def kind() -> type[Made]:
    """What it makes them of."""
    return Made
