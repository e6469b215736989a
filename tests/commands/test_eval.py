from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from thinkfast.cli import build_app
from thinkfast.models.checkpoint import save_checkpoint
from thinkfast.models.decoder import Decoder, init_weights
from thinkfast.models.loading import ASSETS
from thinkfast.models.spec import ModelSpec
from thinkfast.models.tokenizer import Tokenizer
from thinkfast.report.evalconfig import EvalConfig
from thinkfast.report.samples import SAMPLES, read_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "random"
    folder.mkdir()
    vocabulary = Tokenizer.from_dir(ASSETS / "tiny").vocab_size
    decoder = Decoder(ModelSpec(vocabulary, 32, 2, 2, 16, 64, ("attention",), max_positions=512))
    init_weights(decoder, 0)
    save_checkpoint(decoder, ASSETS / "tiny", folder, torch.float32)
    return folder


def thinkfast(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def done(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("runs") / "eval"
    return out, thinkfast(
        "eval", "-m", model, "-m", f"twin={model}", "--limit", "3", "-n", "2", "--max-tokens", "12", "--out", out
    )


def test_eval_ends_with_tables_and_a_report(done: tuple[Path, Result]) -> None:
    out, result = done
    assert result.exit_code == 0, result.output
    assert len(read_rows(out / SAMPLES)) == 12
    for words in ("All systems", "random", "twin", "coverage@n", "no system has a right answer"):
        assert words in result.output
    assert f"samples: {out / SAMPLES}" in result.output
    assert f"report:  {out / 'report.html'}" in result.output
    assert (out / "report.html").stat().st_size > 10_000


def test_eval_again_goes_on_from_what_is_there(done: tuple[Path, Result], model: Path) -> None:
    out, _ = done
    before = (out / SAMPLES).read_bytes()
    arguments = ["-m", model, "-m", f"twin={model}", "--limit", "3", "--max-tokens", "12", "--out", out]
    again = thinkfast("eval", *arguments, "-n", "2", "--no-report")
    assert again.exit_code == 0
    assert "report:" not in again.output
    assert (out / SAMPLES).read_bytes() == before
    other = thinkfast("eval", *arguments, "-n", "3")
    assert other.exit_code == 2
    assert "n was 2 and is 3" in other.stderr
    assert "choose another --out" in other.stderr


def test_help_says_what_a_kill_loses() -> None:
    words = " ".join(thinkfast("eval", "--help").output.split())
    assert f"the last unit that it kept: up to {EvalConfig(('tiny',)).unit} samples of every problem" in words


def test_report_draws_from_log_and_results_alone(done: tuple[Path, Result], tmp_path: Path) -> None:
    for name in (SAMPLES, "eval.json"):
        shutil.copy(done[0] / name, tmp_path / name)
    result = thinkfast("report", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "report.html").read_bytes() == (done[0] / "report.html").read_bytes()


def test_a_recipe_with_changes_and_options(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "eval.yaml"
    recipe.write_text(f"models: ['{model}']\nlimit: 4\nn: 3\nmax_tokens: 5\n")
    out = tmp_path / "out"
    result = thinkfast("eval", recipe, "limit=1", "seed=7", "--max-batch", "2", "--out", out, "--no-report")
    assert result.exit_code == 0, result.output
    config = json.loads((out / "eval.json").read_text())["config"]
    assert (config["limit"], config["seed"], config["n"], config["max_batch"]) == (1, 7, 3, 2)
    assert len(read_rows(out / SAMPLES)) == 3


def test_seconds_alone_lift_the_cap_on_samples(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = thinkfast(
        "eval", "-m", model, "--limit", "2", "--seconds", "0.3", "--max-tokens", "4", "--out", out, "--no-report"
    )
    assert result.exit_code == 0, result.output
    assert json.loads((out / "eval.json").read_text())["config"]["n"] is None
    assert max(row.sample for row in read_rows(out / SAMPLES)) > 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no model to evaluate"),
        (["-m", "tinny"], "unknown model 'tinny'.*did you mean 'tiny'"),
        (["-m", "MODEL", "-n", "0"], "n is 0"),
        (["-m", "MODEL", "--seconds", "nan"], "seconds is nan"),
        (["-m", "MODEL", "--seconds", "-1"], r"seconds is -1\.0"),
        (["-m", "MODEL", "--problems", "nowhere"], "no problems named 'nowhere'"),
        (["-m", "MODEL", "temprature=1"], "did you mean 'temperature'"),
        (["a.yaml", "b.yaml"], "two recipes"),
        (["missing.yaml"], "cannot read the recipe missing.yaml"),
    ],
)
def test_mistakes_are_explained_and_leave_nothing(
    model: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    given = [str(model) if argument == "MODEL" else argument for argument in arguments]
    result = thinkfast("eval", *given, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert re.search(words, result.stderr, re.DOTALL)
    assert "remedy: " in result.stderr
    assert not (tmp_path / "out").exists()


def test_report_of_nothing_is_explained(tmp_path: Path) -> None:
    result = thinkfast("report", tmp_path)
    assert result.exit_code == 2
    assert "holds no finished run" in result.stderr
