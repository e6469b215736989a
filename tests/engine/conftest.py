"""Fixtures of the engine's tests; the models are in toy_models.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# pytest's importlib mode puts no folder on the path, and the tests here share toy_models.py.
sys.path.append(str(Path(__file__).parent))

from toy_models import SPECS


@pytest.fixture(params=list(SPECS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)
