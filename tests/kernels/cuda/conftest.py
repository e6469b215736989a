"""What the tests of Triton's kernels share, for those in CUDA C++."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "triton"))
