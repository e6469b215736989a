"""News on their way when nobody waits for them any more."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")

from thinkfast.engine.cuda.flights import Flights
from thinkfast.kernels.triton.sampler import NEWS


def test_memory_that_is_written_to_is_not_given_back() -> None:
    """A ring's memory belongs to whoever comes next as soon as the last step has been waited for, and no sooner."""
    flights, waited = Flights(4, 8, 2, torch.device("cpu")), []
    ring = torch.zeros(2, NEWS, 2, dtype=torch.int32)
    for turn in range(2):
        flights.add(ring[turn], np.array([0, 1]))
        flights._aloft[-1].done = SimpleNamespace(synchronize=lambda turn=turn: waited.append(turn))
    flights.land(keep=1)
    assert waited == [0]
    del flights
    assert waited == [0, 1]
