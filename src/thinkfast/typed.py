"""Plain data (what YAML or JSON parses to) into typed, frozen dataclasses, with errors that name the key; and numbers
that a caller passes, with errors that name the argument.

Why by hand: the fields of a recipe are few plain types, and CUDA images may lack pydantic. A misspelt key or a wrong
type is an error with a suggestion, because a silently ignored line in a recipe costs a day.

    from_dict(AlignConfig, {"tokens": 2e6, "lr": 1e-4})
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import operator
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from thinkfast import yaml12
from thinkfast.errors import ConfigError, InputError

C = TypeVar("C")


class OverrideText(str):
    """The text after `=` in an override: read as YAML, or taken as it stands where the field is text."""

    __slots__ = ()


def from_dict(cls: type[C], tree: Mapping[str, Any]) -> C:
    """Build the dataclass `cls` from plain data.

    Raises:
        ConfigError: unknown key, missing key, wrong type, or a ValueError from a `validate` method.
    """
    built: C = _build(cls, tree, "", None)
    return built


def _build(cls: Any, tree: Any, where: str, base: Any) -> Any:
    """An instance of dataclass `cls`; keys that `tree` leaves out come from `base`, else from the defaults."""
    if not isinstance(tree, Mapping):
        raise _mismatch(where, f"the keys of {cls.__name__}", tree)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = get_type_hints(cls)
    for key in tree:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            guess = f"did you mean {_join(where, close[0])!r}?" if close else f"known keys: {', '.join(fields)}"
            raise ConfigError(f"unknown key {_join(where, key)!r}", remedy=guess)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        default = getattr(base, name) if base is not None else _default(field)
        if name in tree:
            values[name] = _convert(hints[name], tree[name], _join(where, name), default)
        elif default is not dataclasses.MISSING:
            values[name] = default
        else:
            raise ConfigError(f"missing key {_join(where, name)!r}", remedy=f"add it, a {_name(hints[name])}")
    try:
        built = cls(**values)
        if hasattr(built, "validate"):
            built.validate()
    except ValueError as error:
        inside = f"{where}: " if where else ""
        raise ConfigError(f"{inside}{error}", remedy="change the value named above") from error
    return built


def _convert(hint: Any, value: Any, where: str, default: Any = None) -> Any:
    """`value` as the type `hint`, or a ConfigError naming `where` and the type expected."""
    if isinstance(value, OverrideText):
        return _convert_typed(hint, value, where, default)
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where, default if isinstance(default, hint) else None)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        return _convert_union(hint, arguments, value, where, default)
    if origin is Literal and any(value == choice and type(value) is type(choice) for choice in arguments):
        return value
    if origin is tuple and isinstance(value, list | tuple):
        items = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(items) == len(value):
            pairs = enumerate(zip(items, value, strict=True))
            return tuple(_convert(item, each, f"{where}.{index}") for index, (item, each) in pairs)
    if origin is list and isinstance(value, list | tuple):
        return [_convert(arguments[0], each, f"{where}.{index}") for index, each in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {
            _convert(arguments[0], key, where): _convert(arguments[1], each, _join(where, key))
            for key, each in value.items()
        }
    if isinstance(hint, type) and origin is None:
        found = _convert_plain(hint, value)
        if found is not None or (hint is types.NoneType and value is None):
            return found
    raise _mismatch(where, _name(hint), value)


def _convert_plain(hint: type, value: Any) -> Any:
    """`value` as str, int, float, bool, Path or enum member; None when it does not fit."""
    if issubclass(hint, enum.Enum):
        return next((member for member in hint if member.value == value), None)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, bool) or hint is bool:
        return value if isinstance(value, bool) and hint is bool else None
    if hint is float and isinstance(value, int):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)  # tokens: 2e6
    return value if isinstance(value, hint) else None


def _convert_union(hint: Any, arms: tuple[Any, ...], value: Any, where: str, default: Any) -> Any:
    arms = tuple(arm for arm in arms if arm is not types.NoneType or value is None)
    if value is None and types.NoneType in arms:
        return None
    # An arm of exactly the value's type goes first: in `float | int`, 3 stays an int.
    for arm in sorted(arms, key=lambda arm: arm is not type(value)):
        try:
            return _convert(arm, value, where, default)
        except ConfigError:
            if len(arms) == 1:
                raise
    raise _mismatch(where, _name(hint), value)


def _convert_typed(hint: Any, text: OverrideText, where: str, default: Any) -> Any:
    try:
        return _convert(hint, yaml12.parse(text), where, default)
    except (yaml.YAMLError, ConfigError):
        if hint is str or str in get_args(hint):
            return str(text)  # name=123 means the text 123
        raise


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _mismatch(where: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"{where or 'the config'} must be {expected}, not {shown(value)}", remedy=f"change {where}")


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _name(hint: Any) -> str:
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in hint)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)


def shown(value: Any) -> str:
    """A value as an error message shows it: short, with its type."""
    return f"{value!r} ({type(value).__name__})" if len(repr(value)) < 60 else type(value).__name__


def whole(name: str, value: object) -> int:
    """``value``, whatever library's integer it is. Raises: InputError naming the argument."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{name} is {value!r}", remedy="pass a whole number") from None


def real(name: str, value: object) -> float:
    """The same of any number, or an array or tensor of one."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r}", remedy="pass a number") from None
