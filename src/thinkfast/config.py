"""Recipes: YAML into frozen dataclasses, with dotted overrides, and the resolved config saved beside every output.

Why: a run is described by one typed object. A misspelt key or a wrong type is an error that names the key and helps,
because a silently ignored line in a recipe costs a day. Numbers follow YAML 1.2: `1e-4` is a float, `yes` is text.

    config = load_config(DistillConfig, "recipes/tiny.yaml", ["align.tokens=2e6"]); save_resolved(config, out)

Fields may be dataclasses, str, int, float, bool, Path, enums, Literal, tuple, list, dict and unions. A nested mapping
changes only the keys it names, the rest keeps the field's default. A dataclass may define `validate(self) -> None`
and raise ValueError there for values out of range.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from thinkfast import yaml12
from thinkfast.errors import ConfigError, OutputError
from thinkfast.files import atomic_write, require_output_dir
from thinkfast.typed import OverrideText, from_dict, shown

C = TypeVar("C")
SAVED_NAME = "config.yaml"
MOST_DIFFERENCES = 6  # that a refusal names: two recipes may have nothing in common


def load_config(cls: type[C], path: str | Path | None = None, overrides: Iterable[str] = ()) -> C:
    """Build `cls` from its defaults, then the YAML file, then the overrides `a.b=value`.

    Raises:
        ConfigError: unreadable file, bad YAML, unknown key, wrong type, missing key, or a failed `validate`.
    """
    tree = {} if path is None else read_yaml(path)
    for override in overrides:
        _apply(tree, override)
    return from_dict(cls, tree)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError when it cannot be read, is not YAML, or is not a mapping."""
    try:
        tree = yaml12.parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}", remedy="check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}", remedy="repair the line named above") from error
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{path} holds {shown(tree)}, not keys and values", remedy="write it as `key: value` lines")
    return tree or {}


def to_dict(config: Any) -> Any:
    """Plain data (dict, list, str, numbers) of a config; `from_dict` gives the same config back."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, enum.Enum):
        return config.value
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return [to_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def to_yaml(config: Any) -> str:
    """The whole resolved config as YAML, keys in the order of the fields."""
    return yaml12.dump(to_dict(config))


def save_resolved(config: Any, folder: str | Path) -> Path:
    """Write `config.yaml` into `folder`; loading that file gives an equal config. Returns its path."""
    path = Path(folder) / SAVED_NAME
    atomic_write(path, to_yaml(config))
    return path


def claim(config: Any, folder: Path, marker: str, what: str) -> None:
    """Make `folder` the place of a run of `config`, saved in it as `marker`, or find that it is.

    Errors: OutputError where it holds something else, or `what`, a run that differs; the message says in what.
    """
    if not require_output_dir(folder, marker, to_yaml(config)):
        return
    there, here = read_yaml(folder / marker), yaml12.parse(to_yaml(config))
    found = [f"{key} was {_brief(old)} and is {_brief(new)}" for key, old, new in _differences(there, here, "")]
    if found:
        more = [f"{len(found) - MOST_DIFFERENCES} more"] if len(found) > MOST_DIFFERENCES else []
        raise OutputError(
            f"{folder} holds {what}: {', '.join([*found[:MOST_DIFFERENCES], *more])}",
            remedy="choose another --out, or run it as it was begun",
        )


def _differences(there: Any, here: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """(key, old, new) of what differs; a key is dotted, as an override would write it."""
    if isinstance(there, dict) and isinstance(here, dict):
        parts = [(key, there.get(key), here.get(key)) for key in dict.fromkeys([*there, *here])]
    elif _of_mappings(there) and _of_mappings(here) and len(there) == len(here):
        parts = list(zip(map(str, range(len(here))), there, here, strict=True))
    else:
        if there != here:
            yield where, there, here
        return
    for key, old, new in parts:
        yield from _differences(old, new, f"{where}.{key}" if where else str(key))


def _of_mappings(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, dict) for each in value)


def _brief(value: Any) -> str:
    if _of_mappings(value):
        return f"{len(value)} of them"
    return ", ".join(map(str, value)) if isinstance(value, list) and value else str(value)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override {override!r} is not key=value", remedy="write for example seed=1")
    node: Any = tree
    for part in parts[:-1]:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = node[_slot(node, part, override)]
    node[_slot(node, parts[-1], override)] = OverrideText(text)


def _slot(node: Any, part: str, override: str) -> str | int:
    if isinstance(node, dict):
        return part
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return int(part)
    raise ConfigError(f"override {override!r}: there is no {part!r} inside {shown(node)}", remedy="check the key")
