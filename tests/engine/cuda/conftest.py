"""A cache of the run's own: what earlier runs have chosen must not decide what is tested, nor tests what users get."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    # One for all workers, whose folders lie in the run's: measuring takes a second.
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    monkeypatch.setenv("THINKFAST_CACHE", str(run / "cache"))
