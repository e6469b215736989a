"""How near a kernel has to come to its torch reference, and what its memory holds before it has written there."""

from __future__ import annotations

import torch
from torch import Tensor

NAN = float("nan")
# A rounding of a product to bf16 is 2 ** -9 at most; sums in another order do not show beside it. The interpreter
# cannot multiply bf16, and takes fp32.
PRODUCT = 4e-3 if torch.cuda.is_available() else 1e-5


def close(found: Tensor, want: Tensor, bound: float) -> None:
    """All of it within ``bound`` of its norm, and every line within three times that of a line's: rounding alone makes
    one line of 300 up to three times as wrong as all are; one of 32 heads that is another's makes it wrong by 0.2.
    """
    lines, own = (each.double().reshape(len(want), -1) for each in (found, want))
    errors, norms = (lines - own).norm(dim=1), own.norm(dim=1)
    overall = float(errors.norm() / norms.norm().clamp_min(1e-30))
    assert overall < bound, overall
    # Of its own norm where that is larger than the mean: attention over one token gathers more than over thousands.
    own_errors = errors / norms.clamp_min(float(norms.mean().clamp_min(1e-30)))
    assert float(own_errors.max()) < 3 * bound, (float(own_errors.max()), int(own_errors.argmax()))


def tolerance(dtype: torch.dtype) -> float:
    return 1e-2 if dtype == torch.bfloat16 else 2e-5
