"""The shape of the source: import order, docstrings, file sizes (DESIGN.md section 2, STYLE.md rule 1)."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

import thinkfast

ROOT = Path(thinkfast.__file__).parent
FLOW = ["models", "kernels", "data", "engine", "judge", "distill", "report", "serve"]
BOTTOM = ["errors", "files", "jsonl", "yaml12", "typed", "config", "provenance"]
TOP = ["commands", "cli", "demo", "__main__"]
LEVELS = {
    **dict.fromkeys(BOTTOM, 0),
    **{name: level for level, name in enumerate(FLOW, start=1)},
    **dict.fromkeys(TOP, len(FLOW) + 1),
}
FILES = sorted(ROOT.rglob("*.py"))
MAX_LINES = 400
MEDIAN_LINES = 200


def part_of(module: str) -> str | None:
    """Folder or top-level file of a dotted module name; None for the bare package and other packages."""
    parts = module.split(".")
    return parts[1] if parts[0] == "thinkfast" and len(parts) > 1 else None


def imports(tree: ast.AST, package: list[str], public: dict[str, str]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported anywhere in a module, inside functions and TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{module}.{alias.name}"
                # `from thinkfast import solve` is an import of judge.solve, however lazy.
                yield node.lineno, public.get(name, name)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            target = node.args[0]
            if called in {"import_module", "__import__"} and isinstance(target, ast.Constant):
                yield node.lineno, str(target.value)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "thinkfast":
            yield node.lineno, public.get(f"thinkfast.{node.attr}", "")


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports in `source` that point later in the flow than `module` stands."""
    own = part_of(module)
    if own is None:
        return []  # thinkfast/__init__.py names the public API lazily and is above the order
    package = module.split(".") if is_package else module.split(".")[:-1]
    public = {f"thinkfast.{name}": target for name, (target, _) in thinkfast._EXPORTS.items()}
    public["thinkfast.__version__"] = "thinkfast"
    found = []
    for line, name in imports(ast.parse(source), package, public):
        other = part_of(name)
        if other is not None and (other not in LEVELS or LEVELS[other] > LEVELS[own]):
            found.append(f"{module}:{line} imports {name}")
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file(path: Path) -> None:
    source = path.read_text()
    part = part_of(module_name(path))
    assert part is None or part in LEVELS, f"{part} has no place in the import order"
    assert violations(source, module_name(path), path.name == "__init__.py") == []
    assert ast.get_docstring(ast.parse(source)), "a module says what it is, why, and how it is used"
    assert len(source.splitlines()) <= MAX_LINES


def test_the_median_file_is_short() -> None:
    assert statistics.median(len(path.read_text().splitlines()) for path in FILES) <= MEDIAN_LINES


@pytest.mark.parametrize(
    ("source", "module", "bad"),
    [
        ("from thinkfast.errors import InputError", "thinkfast.models.spec", False),
        ("from thinkfast.models import spec", "thinkfast.engine.llm", False),
        ("from thinkfast import __version__", "thinkfast.provenance", False),
        ("import torch.distill", "thinkfast.models.spec", False),
        ("from .spec import ModelSpec", "thinkfast.models.decoder", False),
        ("import thinkfast.engine.llm", "thinkfast.models.spec", True),
        ("def f():\n    from thinkfast.engine.llm import LLM", "thinkfast.models.spec", True),
        ("from thinkfast import engine", "thinkfast.models.spec", True),
        ("from thinkfast import solve", "thinkfast.engine.llm", True),
        ("import thinkfast\nthinkfast.solve('x')", "thinkfast.engine.llm", True),
        ("from ..engine import llm", "thinkfast.models.spec", True),
        ("import importlib\nimportlib.import_module('thinkfast.report')", "thinkfast.judge.vote", True),
        ("from thinkfast.models import spec", "thinkfast.config", True),
        ("from thinkfast.misc import helper", "thinkfast.cli", True),
    ],
)
def test_the_order_check_sees_every_kind_of_import(source: str, module: str, bad: bool) -> None:
    assert bool(violations(source, module)) == bad
