"""How near a kernel has to come to its torch reference, and what its memory holds before it has written there."""

from __future__ import annotations

import torch
from torch import Tensor

NAN = float("nan")


def close(found: Tensor, want: Tensor, bound: float) -> None:
    error = (found.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30)
    assert error < bound, float(error)


def tolerance(dtype: torch.dtype) -> float:
    return 1e-2 if dtype == torch.bfloat16 else 2e-5
