from __future__ import annotations

import pytest
import torch

from thinkfast.models.precision import at_least_fp32, wide


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_only_widens(given: torch.dtype, kept: torch.dtype) -> None:
    assert wide(given) == kept
    assert at_least_fp32(torch.ones(2, dtype=given)).dtype == kept
