"""The kernels on a GPU where there is one, else by Triton's interpreter, which must be chosen before the import.

The interpreter of triton 3.6 turns arrays of one element into numbers, which numpy 2.4 refuses.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent))
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# A skip in a conftest would take the whole session with it, so files that cannot run here are not collected.
_interpreted = tuple(map(int, np.__version__.split(".")[:2])) < (2, 4)
if importlib.util.find_spec("triton") is None or not (torch.cuda.is_available() or _interpreted):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
