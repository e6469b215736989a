from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

import thinkfast


def test_version_is_the_installed_one() -> None:
    assert thinkfast.__version__ == metadata.version("thinkfast")


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, thinkfast; print(sorted({'torch', 'numpy', 'transformers', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", [name for name in thinkfast.__all__ if name != "__version__"])
def test_public_names_resolve(name: str) -> None:
    assert getattr(thinkfast, name) is not None
    assert name in dir(thinkfast)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'thinkfast' has no attribute 'solv'"):
        _ = thinkfast.solv
