"""The kernels on a GPU where there is one, else by Triton's interpreter, which must be chosen before the import.

The interpreter of triton 3.6 turns arrays of one element into numbers, which numpy 2.4 refuses.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent))
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
if not torch.cuda.is_available() and tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4):
    pytest.skip("Triton's interpreter needs numpy < 2.4", allow_module_level=True)
pytest.importorskip("triton", reason="CPU builds of torch come without triton: pip install triton runs these tests")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
