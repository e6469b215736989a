"""News of rows that come and go, and of those on their way when nobody waits for them any more."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")

from thinkfast.engine.cuda.flights import Flights
from thinkfast.kernels.triton.sampler import CERTAINTY, LOGPROB, NEWS, TOKEN


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


def test_a_slot_has_said_what_was_sent_to_its_owner() -> None:
    """Over more steps than numbers are converted at once, asked for now and then, with owners that leave midway."""
    rng = np.random.default_rng(0)
    slots, steps = 5, 300
    flights = Flights(slots, steps, slots, torch.device("cpu"))
    want: list[list[tuple[int, float, float]]] = [[] for _ in range(slots)]
    flights.enter(np.arange(slots))
    for step in range(steps):
        if step in (40, 130, 131, 200):
            gone = rng.choice(slots, 2, replace=False)
            flights.leave(gone)
            flights.enter(gone)
            for slot in gone:
                want[slot] = []
        rows = rng.permutation(slots)[: rng.integers(1, slots + 1)]
        memory = torch.zeros(NEWS, slots, dtype=torch.int32)
        news = memory.numpy()
        drawn = rng.integers(0, 128_256, len(rows)), *rng.standard_normal((2, len(rows))).astype(np.float32)
        news[TOKEN, : len(rows)] = drawn[0]
        for place, column in ((LOGPROB, drawn[1]), (CERTAINTY, drawn[2])):
            news[place, : len(rows)] = column.view(np.int32)
        for slot, *values in zip(rows, *drawn, strict=True):
            want[slot].append(tuple(values))
        flights.add(memory, rows)
        flights.land(keep=0)
        for slot in range(slots) if step % 37 == 0 or step == steps - 1 else ():
            said = flights.said(slot)
            assert said.tokens == tuple(token for token, _, _ in want[slot])
            assert all(type(token) is int for token in said.tokens)
            assert said.logprobs.tolist() == [logprob for _, logprob, _ in want[slot]]
            assert said.certainty == (
                pytest.approx(np.mean([c for _, _, c in want[slot]], dtype=np.float64)) if want[slot] else None
            )
