"""The demo end to end, small: everything is written, and a run killed at random moments ends like a whole one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from thinkfast.config import to_yaml
from thinkfast.demo import QUICK, DemoConfig, demo_recipe, run_demo
from thinkfast.errors import OutputError

SMALL = "DemoConfig(share=0.004, problems=3, n=2, seconds=1000.0, gates=False, bench_batch=4, bench_tokens=12)"
SCRIPT = f"""
import sys
from pathlib import Path
from rich.console import Console
from thinkfast.demo import DemoConfig, run_demo
if __name__ == "__main__":
    run_demo({SMALL}, Path(sys.argv[1]), Console())
"""


def start(script: Path, out: Path) -> subprocess.Popen[bytes]:
    # One thread: sums are then formed in one order, and a busy machine cannot starve a spinning thread pool.
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(script), str(out)], env=env, stdout=subprocess.DEVNULL)


def files_in(folder: Path) -> int:
    """Files and folders so far; by `os.walk`, which forgives what disappears while it looks."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(folder))


def account(out: Path) -> tuple[dict[str, str], list[dict[str, object]]]:
    """Losses of every stage of every student, and the sample log without its measured seconds."""
    losses = {str(p.relative_to(out)): p.read_text() for p in sorted(out.glob("*/stages/*/*.losses.jsonl"))}
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    return losses, [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.timeout(600)
def test_killed_demo_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    script = tmp_path / "demo.py"
    script.write_text(SCRIPT)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(script, whole).wait() == 0
    files = files_in(whole)
    dice = random.Random(0)
    kills = 0
    for part in (0.3, 0.85):
        # A share of the run's files, not of its seconds: a busy machine makes a run any number of times longer.
        threshold = files * part * dice.uniform(0.6, 1.0)
        process = start(script, killed)
        while process.poll() is None and files_in(killed) < threshold:
            time.sleep(0.02)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills == 2
    assert start(script, killed).wait() == 0
    assert account(killed) == account(whole)
    for name in ("report.html", "results.json", "samples.jsonl", "hybrid/model/model.safetensors"):
        assert (killed / name).stat().st_size > 0
    assert list(killed.glob("*.png"))
    page = (killed / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text(to_yaml(QUICK))
    with pytest.raises(OutputError, match=r"demo with other settings: seed was 0 and is 3\n"):
        run_demo(replace(QUICK, seed=3), tmp_path, Console(quiet=True))


@pytest.mark.parametrize("keep", [(3,), ()])
def test_live_recipe_has_every_stage_and_gate(keep: tuple[int, ...]) -> None:
    recipe = demo_recipe("student", keep, DemoConfig())
    recipe.validate()
    for stage in recipe.stages:
        stage.validate()
        assert stage.gate is not None
    assert [stage.name for stage in recipe.stages] == ["orient", "align", "imitate", "sft"]
