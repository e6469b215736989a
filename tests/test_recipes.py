"""Every recipe in the repository loads, checks and dry-runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from thinkfast.cli import build_app
from thinkfast.config import load_config
from thinkfast.distill.recipe import Recipe
from thinkfast.report.evaluate import EvalConfig
from thinkfast.report.verify import VerifierRecipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 4


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads_and_dry_runs(path: Path) -> None:
    if path.stem.startswith("eval"):
        load_config(EvalConfig, path).validate()
        return
    if path.stem.endswith("verifier"):
        load_config(VerifierRecipe, path).validate()
        return
    recipe = load_config(Recipe, path)
    result = CliRunner().invoke(build_app(), ["distill", str(path), "--dry-run"])
    assert result.exit_code == 0, result.output
    for stage in recipe.stages:
        assert stage.name in result.output


def test_unknown_key_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nteecher: tiny\nstages: []\n")
    result = CliRunner().invoke(build_app(), ["distill", str(path), "--dry-run"])
    assert result.exit_code == 2
    assert "teacher" in result.output
