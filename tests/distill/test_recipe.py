from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from thinkfast.config import load_config, read_yaml
from thinkfast.distill.recipe import Recipe, StageConfig, TeacherConfig
from thinkfast.errors import ConfigError

RECIPES = sorted(p for p in (Path(__file__).parents[2] / "recipes").glob("*.yaml") if "stages" in read_yaml(p))


def stage(**changes: Any) -> StageConfig:
    config = StageConfig(**({"name": "align", "tokens": 1e5, "batch_tokens": 1000, "lr": 1e-3} | changes))
    config.validate()
    return config


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    recipe = load_config(Recipe, path)
    assert recipe.stages
    assert all(s.lr_at(s.steps - 1) > 0 for s in recipe.stages)


def test_steps_are_tokens_over_batch() -> None:
    assert stage().steps == 100
    assert stage(tokens=1000.0).steps == 1
    assert stage(tokens=1499.0).steps == 1
    assert stage(tokens=1501.0).steps == 2


def test_schedule_warms_up_stays_and_decays() -> None:
    config = stage(warmup=0.1, decay=0.5)
    rates = [config.lr_at(i) for i in range(config.steps)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[:10] == pytest.approx([1e-4 * (i + 1) for i in range(10)])
    assert rates[9:50] == pytest.approx([1e-3] * 41)
    tail = rates[50:]
    assert tail == sorted(tail, reverse=True)
    assert tail[25] == pytest.approx(0.5e-3)
    assert rates[-1] == pytest.approx(0.05e-3)  # never to nothing


@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_schedule_is_sane_for_short_stages(steps: int, warmup: float) -> None:
    config = stage(tokens=1000.0 * steps, warmup=warmup, decay=min(0.5, 1 - warmup))
    rates = [config.lr_at(i) for i in range(steps)]
    assert len(rates) == config.steps
    assert all(0.05e-3 <= r <= 1e-3 for r in rates)
    assert warmup == 1.0 or max(rates) == pytest.approx(1e-3) or steps <= 3


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokens": 10.0}, "tokens"),
        ({"tokens": float("nan")}, "tokens"),
        ({"tokens": float("inf")}, "tokens"),
        ({"batch_tokens": 0}, "batch_tokens"),
        ({"lr": 0.0}, "lr is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": 1.5}, "lr is 1.5"),
        ({"warmup": 0.6, "decay": 0.6}, "warmup and decay"),
        ({"warmup": -0.1}, "warmup and decay"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"clip": 0.0}, "clip"),
        ({"hidden": -0.5}, "hidden"),
    ],
    ids=str,
)
def test_figures_out_of_range_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        stage(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stages": ()}, "at least one stage"),
        ({"stages": (stage(name="pretrain"),)}, "new_teacher"),
        ({"stages": (stage(name="pretrain"), stage(name="align")), "new_teacher": TeacherConfig()}, "stage align"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Recipe(name="x", **changes).validate()


@pytest.mark.parametrize(
    "changes", [{"heads": 0}, {"d_model": 100}, {"heads": 6, "kv_heads": 4}, {"d_model": 6}], ids=str
)
def test_teacher_sizes_that_do_not_divide(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="multiple of"):
        TeacherConfig(**changes).validate()


def test_a_misspelt_stage_and_key_are_named() -> None:
    with pytest.raises(ConfigError, match=r"stages\.0\.name"):
        load_config(Recipe, None, ["name=x", "stages=[{name: alig, tokens: 1e5, lr: 1e-3}]"])
    with pytest.raises(ConfigError, match="tokns"):
        load_config(Recipe, None, ["name=x", "stages=[{name: align, tokns: 1e5, lr: 1e-3}]"])
