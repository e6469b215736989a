from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from thinkfast.engine.plan import MemoryPlan
from thinkfast.errors import InputError, ModelError, OutputError, ProblemError
from thinkfast.models.checkpoint import save_checkpoint
from thinkfast.models.decoder import Decoder, init_weights
from thinkfast.models.loading import ASSETS
from thinkfast.models.spec import ModelSpec
from thinkfast.models.tokenizer import Tokenizer
from thinkfast.report.evalconfig import system_list
from thinkfast.report.evaluate import EVAL, EvalConfig, Start, evaluate, gradable
from thinkfast.report.samples import SAMPLES, UNITS, Row, read_rows

TEACHER = ModelSpec(512, 32, 2, 2, 16, 64, ("attention", "attention"), max_positions=256)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random teacher and a random pure student whose chains end after a random number of tokens."""
    folders = {}
    vocabulary = Tokenizer.from_dir(ASSETS / "tiny").vocab_size
    for name, spec in (("teacher", TEACHER), ("pure", TEACHER.as_student(()))):
        folder = tmp_path_factory.mktemp("models") / name
        folder.mkdir()
        model = Decoder(replace(spec, vocab_size=vocabulary))
        init_weights(model, 0)
        save_checkpoint(model, ASSETS / "tiny", folder, torch.float32)
        config = json.loads((folder / "config.json").read_text())
        config["eos_token_id"] = list(range(4, 20))
        (folder / "config.json").write_text(json.dumps(config))
        folders[name] = folder
    return folders


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("problems") / "six.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"p{i}", "question": f"{i} + {i} = ?", "answer": str(i)}) + "\n" for i in range(6))
    )
    return path


@pytest.fixture
def config(models: dict[str, Path], problems: Path) -> EvalConfig:
    names = tuple(f"{name}={path}" for name, path in models.items())
    return EvalConfig(names, str(problems), n=5, unit=2, max_tokens=60, max_batch=7)


def timeless(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]


def test_the_log_holds_every_chain_in_order(config: EvalConfig, tmp_path: Path) -> None:
    seen: list[Row] = []
    starts: list[Start] = []
    loads: list[str] = []
    plans: list[MemoryPlan] = []
    done = evaluate(
        config,
        tmp_path / "out",
        on_load=loads.append,
        on_plan=plans.append,
        on_start=starts.append,
        on_chain=seen.append,
    )
    assert len(plans) == len(loads)
    rows = read_rows(tmp_path / "out" / SAMPLES)
    units = ((0, 1), (2, 3), (4,))
    expected = [(s, f"p{p}", i) for s in ("teacher", "pure") for unit in units for p in range(6) for i in unit]
    assert [(row.system, row.problem, row.sample) for row in rows] == expected
    assert sorted(seen, key=repr) == sorted(rows, key=repr)
    assert [(start.system, start.chains, start.done) for start in starts] == [("teacher", 30, 0), ("pure", 30, 0)]
    assert loads == ["teacher", "pure"]
    assert [start.live()[1] for start in starts] == [record.generated_tokens for record in done.systems]
    assert {row.finish for row in rows} == {"stop", "length"}
    assert all(row.tokens == 60 for row in rows if row.finish == "length")
    for record in done.systems:
        mine = [row for row in rows if row.system == record.name]
        assert max(row.seconds for row in mine) <= record.wall_seconds
        assert record.generated_tokens == sum(row.tokens for row in mine)
        assert (record.samples, record.complete_samples, record.cut, record.ended) == (30, 5, 0, "n")
        assert record.tokens_per_second == pytest.approx(record.generated_tokens / record.wall_seconds)
    assert [record.family for record in done.systems] == ["teacher", "pure"]
    saved = json.loads((tmp_path / "out" / EVAL).read_text())
    assert [each["name"] for each in saved["systems"]] == ["teacher", "pure"]
    assert saved["problems"][3] == {"id": "p3", "question": "3 + 3 = ?", "answer": "3", "level": None, "subject": None}


def test_of_many_problems_a_unit_takes_fewer_samples(config: EvalConfig, tmp_path: Path) -> None:
    """4 batches of 2 rows over 6 problems are filled by 2 samples of each, whatever the config allows."""
    evaluate(replace(config, models=config.models[:1], unit=5, max_batch=2, max_tokens=4), tmp_path / "out")
    units = [json.loads(line) for line in (tmp_path / "out" / UNITS).read_text().splitlines()]
    assert [(unit["first"], unit["count"]) for unit in units] == [(0, 2), (2, 2), (4, 1)]


def test_a_row_can_be_judged_again(config: EvalConfig, tmp_path: Path) -> None:
    evaluate(config, tmp_path / "out")
    rows = read_rows(tmp_path / "out" / SAMPLES)
    assert any(row.key is not None for row in rows)
    assert any(row.correct is False for row in rows)
    for row in rows:
        assert row.key is not None or row.correct is False
        if row.correct:
            assert row.key is not None
            assert row.key.endswith(row.problem[1:])
        if row.finish == "length" and row.key is not None:
            assert "answer" in row.text or "boxed" in row.text


def test_a_finished_run_returns_at_once_and_changes_nothing(config: EvalConfig, tmp_path: Path) -> None:
    first = evaluate(replace(config, n=1), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    again = evaluate(replace(config, n=1), tmp_path / "out", on_start=lambda start: pytest.fail(str(start)))
    assert again.systems == first.systems
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_stopped_anywhere_it_goes_on_to_the_same_log(config: EvalConfig, tmp_path: Path) -> None:
    evaluate(config, tmp_path / "whole")

    class Stop(Exception):
        pass

    rng = random.Random(1)
    count = 0

    def stop_at(left: list[int]) -> Any:
        def on_chain(row: Row) -> None:
            nonlocal count
            count += 1
            left[0] -= 1
            if left[0] == 0:
                raise Stop

        return on_chain

    for _ in range(20):
        try:
            evaluate(config, tmp_path / "cut", on_chain=stop_at([rng.randint(1, 20)]))
            break
        except Stop:
            pass
    assert count > 60  # some chains were made twice
    assert timeless(tmp_path / "cut" / SAMPLES) == timeless(tmp_path / "whole" / SAMPLES)
    rows = read_rows(tmp_path / "cut" / SAMPLES)
    assert [row.seconds for row in rows if row.system == "pure"][-1] > 0
    units = [json.loads(line) for line in (tmp_path / "cut" / UNITS).read_text().splitlines()]
    for one, other in itertools.pairwise(units):
        if one["system"] == other["system"]:
            # a unit's clock goes on from the last committed one, whatever was lost between them
            mine = [r.seconds for r in rows if r.system == other["system"] and r.sample >= other["first"]]
            assert min(mine) > one["seconds"]


CHILD = """
import sys
from pathlib import Path
from thinkfast.report.evaluate import EvalConfig, evaluate
import torch
torch.set_num_threads(1)
models, problems, out = sys.argv[1:]
config = EvalConfig(tuple(models.split(",")), problems, n=9, unit=2, max_tokens=60, max_batch=7)
evaluate(config, Path(out), on_chain=lambda row: print(row.system, flush=True))
"""


def test_kill_9_at_random_moments_ends_with_the_undisturbed_log(config: EvalConfig, tmp_path: Path) -> None:
    def child(out: str) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", CHILD, ",".join(config.models), config.problems, str(tmp_path / out)]
        return subprocess.Popen(
            arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    undisturbed = child("whole")
    chains = len(undisturbed.communicate(timeout=120)[0].splitlines())
    assert undisturbed.returncode == 0
    assert chains == 2 * 6 * 9
    rng = random.Random(20339)
    kills = 0
    for attempt in range(12):
        process = child("killed")
        assert process.stdout is not None
        if kills < 3:
            for _ in range(rng.randint(1, 40)):
                if not process.stdout.readline():
                    break
            time.sleep(rng.random() * 0.01)
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=120)
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, attempt
    assert kills >= 2
    assert timeless(tmp_path / "killed" / SAMPLES) == timeless(tmp_path / "whole" / SAMPLES)
    whole, killed = (json.loads((tmp_path / name / EVAL).read_text())["systems"] for name in ("whole", "killed"))
    for one, other in zip(whole, killed, strict=True):
        for field in ("generated_tokens", "prompt_tokens", "samples", "sha", "cut"):
            assert one[field] == other[field]


def test_a_budget_ends_the_run_and_cuts_what_is_not_finished(config: EvalConfig, tmp_path: Path) -> None:
    budget = 0.25
    out = tmp_path / "out"
    done = evaluate(replace(config, n=None, seconds=budget, max_tokens=200), out)
    rows = read_rows(out / SAMPLES)
    for record in done.systems:
        mine = [row for row in rows if row.system == record.name]
        assert all(row.seconds <= budget for row in mine)
        assert all(row.finish in ("stop", "length") for row in mine)
        assert record.wall_seconds < budget + 1.0
        # A unit may be whole a moment before the budget ends, and be written to the log when it has ended.
        assert record.wall_seconds >= (budget if record.cut else 0.5 * budget)
        assert record.ended == "seconds"
        assert record.complete_samples == 2 * ((record.samples + record.cut) // 12 - (record.cut > 0))
    again = evaluate(replace(config, n=None, seconds=budget, max_tokens=200), out)
    assert again.systems == done.systems
    assert read_rows(out / SAMPLES) == rows


def test_n_ends_a_run_that_has_seconds_left(config: EvalConfig, tmp_path: Path) -> None:
    done = evaluate(replace(config, n=2, seconds=100.0), tmp_path / "out")
    assert [(record.ended, record.cut, record.samples) for record in done.systems] == [("n", 0, 12)] * 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": -2}, "n is -2"),
        ({"n": None}, "neither n nor seconds"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"unit": 0}, "unit is 0"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"models": ()}, "no model"),
        ({"models": ("tiny", "x=tiny", "x=tiny-pure")}, "two systems are called 'x'"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_written(
    config: EvalConfig, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        evaluate(replace(config, **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_problems_and_models_are_refused_before_anything_is_written(config: EvalConfig, tmp_path: Path) -> None:
    blank = tmp_path / "blank.jsonl"
    blank.write_text('{"id": "a", "question": "1?", "answer": "1"}\n{"id": "b", "question": "2?", "answer": ""}\n')
    with pytest.raises(ProblemError, match="'b' has no gold answer"):
        evaluate(replace(config, problems=str(blank)), tmp_path / "out")
    with pytest.raises(ModelError, match="unknown model 'tinny'"):
        evaluate(replace(config, models=(*config.models, "tinny")), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    from thinkfast.data.problems import Problem

    with pytest.raises(ProblemError, match="two problems have the id 'x'"):
        gradable([Problem("x", "q", "1", None, "s"), Problem("x", "r", "1", None, "s")])


def test_an_over_long_question_is_named(config: EvalConfig, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"id": "long", "question": "how many apples " * 300, "answer": "1"}) + "\n")
    with pytest.raises(ProblemError, match=r"'long' has \d+ tokens, and 'teacher' was made for 256"):
        evaluate(replace(config, problems=str(path)), tmp_path / "out")
    # a model without attention has no such limit
    done = evaluate(replace(config, models=config.models[1:], problems=str(path), n=1), tmp_path / "pure")
    assert done.systems[0].samples == 1


def test_a_folder_of_something_else_or_of_another_config_is_refused(config: EvalConfig, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("…")
    with pytest.raises(OutputError, match=r"already holds files .*thesis\.tex"):
        evaluate(config, tmp_path / "other")
    evaluate(replace(config, n=1), tmp_path / "out")
    before = (tmp_path / "out" / SAMPLES).read_bytes()
    with pytest.raises(OutputError, match="n was 1 and is 2, temperature was 1.0 and is 0.5"):
        evaluate(replace(config, n=2, temperature=0.5), tmp_path / "out")
    assert (tmp_path / "out" / SAMPLES).read_bytes() == before


def test_changed_weights_are_noticed_on_resume(config: EvalConfig, models: dict[str, Path], tmp_path: Path) -> None:
    evaluate(replace(config, n=3), tmp_path / "out")
    (tmp_path / "out" / EVAL).unlink()
    lines = (tmp_path / "out" / UNITS).read_text().splitlines(keepends=True)
    (tmp_path / "out" / UNITS).write_text(lines[0].replace('"model_sha":"', '"model_sha":"f'))
    with pytest.raises(OutputError, match="the weights for 'teacher' have changed"):
        evaluate(replace(config, n=3), tmp_path / "out")


def test_system_names() -> None:
    names = [(s.name, s.model) for s in system_list(("tiny", "a b=x/y", "runs/pure/model", "runs/other/"))]
    assert names == [("tiny", "tiny"), ("a b", "x/y"), ("pure", "runs/pure/model"), ("other", "runs/other/")]


def test_a_claim_that_nothing_stands_behind_is_given_up(config: EvalConfig, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "new", tmp_path / "there"):
        with pytest.raises(InputError, match="no device"):
            evaluate(replace(config, device="tpu"), out)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert not list((tmp_path / "there").iterdir())
    evaluate(replace(config, models=config.models[:1], max_tokens=4), tmp_path / "there")
    for damaged in ("{", "[]", '{"systems": 3}', '{"config": {}, "systems": [{"x": 1}], "problems": []}'):
        (tmp_path / "there" / EVAL).write_text(damaged)
        with pytest.raises(InputError, match="eval.json"):
            evaluate(replace(config, models=config.models[:1], max_tokens=4), tmp_path / "there")
