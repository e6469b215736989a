"""Which runner a model gets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from thinkfast.engine import runners
from thinkfast.errors import InputError


def test_a_model_on_another_gpu_than_the_current_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels would be launched on a GPU that has none of its memory."""
    pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")
    there = SimpleNamespace(spec=None, head_weight=SimpleNamespace(device=torch.device("cuda:1")))
    monkeypatch.setattr(runners, "captured", lambda spec, device: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(InputError, match="on cuda:1, and kernels would be launched on cuda:0") as caught:
        runners.make_runner(cast(Any, there), cast(Any, None), frozenset())
    assert "CUDA_VISIBLE_DEVICES=1" in caught.value.remedy
