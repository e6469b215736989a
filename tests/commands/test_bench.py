from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from thinkfast.cli import build_app
from thinkfast.commands._benchview import _context
from thinkfast.models.checkpoint import save_checkpoint
from thinkfast.models.decoder import Decoder, init_weights
from thinkfast.models.loading import ASSETS
from thinkfast.models.spec import ModelSpec

TEACHER = ModelSpec(512, 32, 2, 2, 16, 48, ("attention",) * 2, max_positions=512)
SIZES = ("--batch", "2", "--prompt", "4", "--new", "3", "--new", "6", "--repeats", "1")
LEGENDS = ("tokens: of a prompt + new ones", "bound: ", "share: ", "first: ", "MiB: ", "planned: ", "mJ/token: ")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, spec in (("big", TEACHER), ("small", TEACHER.as_student((), 8))):
        model = Decoder(spec)
        init_weights(model, 0)
        save_checkpoint(model, ASSETS / "tiny", root / name)
    return root / "big", root / "small"


def thinkfast(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


def test_bench_shows_tables_and_ends_with_one_line_of_json(models: tuple[Path, Path], tmp_path: Path) -> None:
    out, threads = tmp_path / "bench.json", torch.get_num_threads()
    result = thinkfast("bench", models[0], f"student={models[1]}", *SIZES, "--threads", "1", "--out", out)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    found = json.loads(lines[-1])
    assert json.loads(out.read_text()) == found
    assert list(found["student_vs_teacher"]) == ["student"]
    assert list(found["engine_vs_transformers"]) == ["big"]
    assert (found["threads"], torch.get_num_threads()) == (1, threads)
    text = "\n".join(lines[:-1])
    for words in (
        "Tokens per second",
        "transformers",
        "student vs big",
        "Step time against context",
        "overtakes",
        *LEGENDS,
    ):
        assert words in text
    assert "student has no transformers baseline" in text
    cost = found["throughput"][0]["cost"]["all"]
    (line,) = [line.split() for line in lines if line.split()[:4] == ["big", "thinkfast", "2", "4+3"]]
    assert line[6:8] == [f"{cost['bytes'] / 1e9:.3g}", f"{cost['flops'] / 1e9:.3g}"]


def test_what_was_cheaper_from_the_first_context_on_may_have_been_before() -> None:
    assert _context(13.0, True, 13.0) == "≤ 13"
    assert _context(60.4, True, 13.0) == "60"
    assert _context(None, True, 13.0) == "never"
    assert _context(None, False, 13.0) == ""


def test_bench_can_leave_baseline_and_curve_out(models: tuple[Path, Path]) -> None:
    result = thinkfast("bench", models[1], *SIZES, "--against", "none", "--no-curve")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert {cell["engine"] for cell in found["throughput"]} == {"thinkfast"}
    assert found["step_curves"] == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tinny"], "unknown model 'tinny'.*did you mean 'tiny'"),
        (["tiny", "--batch", "0"], "batch is 0"),
        (["tiny", "--new", "-3"], "new is -3"),
        (["tiny", "--against", "vllm"], "cannot bench against 'vllm'"),
        (["tiny", "--dtype", "int3"], "dtype is 'int3'"),
        (["tiny", "--threads", "0"], "threads is 0"),
        (
            ["tiny", "--prompt", "4000", "--new", "97"],
            "prompts of 4000 and 97 new.*tiny was made for 4096.*--prompt and --new",
        ),
        (
            ["tiny", "--batch", "10000000"],
            "does not fit in memory.*remedy: pass --batch [0-9]+ or a smaller --prompt or",
        ),
        (["tiny", "tiny"], "remedy: label them: tiny=PATH other=PATH$"),
        (["tiny", "--out", "/proc/bench.json"], "cannot write /proc/"),
        (["tiny", "--out", "/tmp"], "/tmp is a folder"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], words: str) -> None:
    result = thinkfast("bench", *arguments)
    assert result.exit_code == 2
    assert re.search(words, result.stderr, re.DOTALL)
    assert "remedy: " in result.stderr
