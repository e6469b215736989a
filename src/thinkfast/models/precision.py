"""The one rule of precision: what decays, sums or exponentiates runs in fp32 or better.

Why: in bf16 a decay of 1 - 1/512 a token rounds to 1, and softmax sums lose their tail; in fp64, which the tests use
to tell a wrong formula from rounding, a cast to fp32 would hide what they look for.

Usage: ``at_least_fp32(dt + dt_bias)``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_fp32(t: Tensor) -> Tensor:
    """``t`` in fp32, or as it is where it is finer already."""
    return t.to(wide(t.dtype))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to accumulate values of ``dtype`` in."""
    return torch.promote_types(dtype, torch.float32)
