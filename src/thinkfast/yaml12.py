"""YAML with the scalars of YAML 1.2 (`1e-4` is a float; `yes`, `1:30` and dates are text) and no duplicate keys.

Why: PyYAML follows YAML 1.1, which reads `lr: 1e-4` as text and `off` as false, and lets the last of two equal keys
win in silence. Loader and dumper share one resolver table, so that what is dumped reads back as it was.

    yaml12.parse("lr: 1e-4") == {"lr": 1e-4}
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_RESOLVERS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.nan",
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # two equal parts are written twice: a recipe is read by people


for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {}  # our own table; the inherited one belongs to PyYAML
    for _tag, (_pattern, _first) in _RESOLVERS.items():
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def parse(text: str) -> Any:
    """The data in one YAML document; raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: no tag runs code


def dump(data: Any) -> str:
    """YAML text of plain data (dict, list, str, int, float, bool, None), keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
