from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkfast import yaml12
from thinkfast.config import claim, from_dict, load_config, save_resolved, to_dict, to_yaml
from thinkfast.errors import ConfigError, OutputError


class Loss(enum.StrEnum):
    FORWARD_KL = "forward_kl"
    REVERSE_KL = "reverse_kl"


@dataclass(frozen=True, slots=True)
class Stage:
    tokens: int = 1000
    lr: float = 1e-4
    loss: Loss = Loss.FORWARD_KL

    def validate(self) -> None:
        if self.tokens <= 0:
            raise ValueError(f"tokens is {self.tokens}, it must be positive")


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    align: Stage = field(default_factory=lambda: Stage(tokens=7))
    stages: tuple[Stage, ...] = ()
    betas: tuple[float, float] = (0.9, 0.95)
    keep: tuple[int, ...] | None = None
    mode: Literal["hybrid", "pure"] = "hybrid"
    data: Path = Path("data")
    shuffle: bool = True
    gates: dict[str, float] = field(default_factory=dict)
    clip: float | None = 1.0


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_yaml_and_overrides_become_typed_values(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\nalign: {lr: 1e-3}\nstages: [{tokens: 5}, {loss: reverse_kl}]\ngates: {orient: 1}")
    recipe = load_config(Recipe, path, ["align.loss=reverse_kl", "stages.0.tokens=2e6", "keep=[1, 5]", "clip=null"])
    assert recipe == Recipe(
        name="x",
        align=Stage(tokens=7, lr=1e-3, loss=Loss.REVERSE_KL),  # tokens=7: the field's default, not the class's
        stages=(Stage(tokens=2_000_000), Stage(loss=Loss.REVERSE_KL)),
        keep=(1, 5),
        gates={"orient": 1.0},
        clip=None,
    )
    assert type(recipe.stages[0].tokens) is int
    assert type(recipe.gates["orient"]) is float


@pytest.mark.parametrize("text", ["123", "yes", "1e5", "null", "a=b", "x: y", "", "[", "7:30"])
def test_an_override_of_text_keeps_its_characters(text: str) -> None:
    assert load_config(Recipe, None, [f"name={text}"]).name == text


@pytest.mark.parametrize(
    ("yaml_text", "message"),
    [
        ("name: x\nalign: {tokns: 5}", r"unknown key 'align.tokns'\n  remedy: did you mean 'align.tokens'\?"),
        ("name: x\nzzz: 5", r"unknown key 'zzz'\n  remedy: known keys: name, align"),
        ("{}", "missing key 'name'"),
        ("name: x\nalign: {tokens: many}", r"align.tokens must be int, not 'many' \(str\)"),
        ("name: x\nalign: {tokens: 1.5}", r"align.tokens must be int, not 1.5"),
        ("name: x\nalign: {tokens: true}", "align.tokens must be int, not True"),
        ("name: x\nalign: 3", r"align must be the keys of Stage, not 3"),
        ("name: x\nalign: {loss: mse}", "align.loss must be one of forward_kl, reverse_kl, not 'mse'"),
        ("name: x\nmode: both", "mode must be one of hybrid, pure"),
        ("name: x\nbetas: [0.9]", r"betas must be tuple\[float, float\]"),
        ("name: x\nshuffle: yes", "shuffle must be bool, not 'yes'"),
        ("name: x\nkeep: [1, a]", "keep.1 must be int, not 'a'"),
        ("name: x\nstages: [{tokens: 0}]", "stages.0: tokens is 0, it must be positive"),
        ("name: 5", "name must be str, not 5"),
        ("name: x\nname: y", "the key 'name' stands twice"),
        ("name: [", "not valid YAML"),
        ("- a", "not keys and values"),
    ],
)
def test_a_mistake_names_the_key_and_helps(tmp_path: Path, yaml_text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Recipe, write(tmp_path, yaml_text))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("align.tokens", "not key=value"),
        ("align..tokens=3", "not key=value"),
        ("align.token=3", "did you mean 'align.tokens'"),
        ("algn.tokens=3", "did you mean 'align'"),
        ("align.tokens=-3", "must be positive"),
        ("stages.0.tokens=3", "stages must be"),
        ("name.x=3", "there is no 'x' inside 'n'"),
    ],
)
def test_a_bad_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Recipe, write(tmp_path, "name: n"), [override])


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match="cannot read the recipe nowhere.yaml: No such file"):
        load_config(Recipe, "nowhere.yaml")


stages = st.builds(
    Stage, tokens=st.integers(1, 10**12), lr=st.floats(allow_nan=False), loss=st.sampled_from(list(Loss))
)
recipes = st.builds(
    Recipe,
    name=st.text(st.characters(codec="utf-8")),
    align=stages,
    stages=st.lists(stages, max_size=3).map(tuple),
    betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    keep=st.none() | st.lists(st.integers()).map(tuple),
    mode=st.sampled_from(["hybrid", "pure"]),
    data=st.text("ab1/ .e", min_size=1).map(Path),
    shuffle=st.booleans(),
    gates=st.dictionaries(st.text("ab1:e-y. "), st.floats(allow_nan=False)),
    clip=st.none() | st.floats(allow_nan=False),
)


@given(recipes)
def test_what_is_saved_loads_equal(recipe: Recipe) -> None:
    assert from_dict(Recipe, yaml12.parse(to_yaml(recipe))) == recipe
    assert from_dict(Recipe, to_dict(recipe)) == recipe


def test_save_resolved_writes_a_loadable_file(tmp_path: Path) -> None:
    recipe = Recipe(name="1e5", stages=(Stage(),))
    path = save_resolved(recipe, tmp_path)
    assert path == tmp_path / "config.yaml"
    assert load_config(Recipe, path) == recipe


@given(st.text(st.characters(codec="utf-8"), max_size=8) | st.from_regex(r"[-+0-9_.eE:~a-z]{1,8}", fullmatch=True))
def test_yaml12_text_stays_text(text: str) -> None:
    assert yaml12.parse(yaml12.dump({"key": text})) == {"key": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2E6", 2e6),
        ("1_000", 1000),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("off", "off"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("~", None),
        ("", None),
        ("-7", -7),
        ("1.", 1.0),
        ("0x10", "0x10"),
    ],
)
def test_yaml12_scalars(text: str, value: Any) -> None:
    parsed = yaml12.parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"align": Stage(tokens=9), "clip": None}, "align.tokens was 7 and is 9, clip was 1.0 and is None"),
        ({"stages": (Stage(), Stage(tokens=5))}, "stages.1.tokens was 1000 and is 5"),
        ({"stages": (Stage(),)}, "stages was 2 of them and is 1 of them"),
        ({"keep": (1, 3), "gates": {"a": 1.0}}, "keep was None and is 1, 3, gates.a was None and is 1.0"),
        (
            {"name": "y", "align": Stage(9), "mode": "pure", "keep": (2,), "shuffle": False, "clip": 2.0, "stages": ()},
            (
                "name was x and is y, align.tokens was 7 and is 9, stages was 2 of them and is [], keep was None and "
                "is 2, mode was hybrid and is pure, shuffle was True and is False, 1 more"
            ),
        ),
    ],
)
def test_another_config_is_refused_by_what_differs(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    begun = Recipe("x", stages=(Stage(), Stage()))
    for _ in range(2):
        claim(begun, tmp_path / "out", "run.yaml", "another run")
    with pytest.raises(OutputError) as refused:
        claim(replace(begun, **changes), tmp_path / "out", "run.yaml", "another run")
    assert refused.value.message == f"{tmp_path / 'out'} holds another run: {named}"
    assert (tmp_path / "out" / "run.yaml").read_text() == to_yaml(begun)
