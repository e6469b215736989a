"""News of steps on their way to the host: pinned memory and events, so that nobody waits for a step that still runs.

A flight carries code, token, log-probability and certainty of every row of one draw. The host hears of a step when the
next one has been launched; rows that were released in between, or whose slot has a new owner, are left out.

Usage: ``flights.send(news, slots); codes = flights.land(current_slots)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thinkfast.engine.pages import Ints
from thinkfast.engine.rows import Said
from thinkfast.kernels.triton.sampler import CERTAINTY, CODE, LOGPROB, NEWS, TOKEN

# Tokens of a slot that become Python's numbers at once.
_TOGETHER = 64


@dataclass(slots=True)
class _Flight:
    memory: Tensor
    slots: Ints
    owners: Ints
    done: Any
    ours: bool


class Flights:
    """Deliveries for ``slots`` slots of at most ``longest`` tokens, and what each slot has said so far."""

    def __init__(self, slots: int, longest: int, rows: int, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._rows = rows
        self._tokens = np.zeros((slots, longest), dtype=np.int32)
        # As Python's numbers, a slot now and then, while the device works: chains that end together, 512 of 2,048
        # tokens, would keep it waiting for 34 ms.
        self._numbers: list[list[int]] = [[] for _ in range(slots)]
        self._logprobs = np.zeros((slots, longest), dtype=np.float32)
        self._certainty = np.zeros(slots)
        self._count = np.zeros(slots, dtype=np.int64)
        # A slot's owners are counted, so that news of one that has left reach nobody else.
        self._owner = np.zeros(slots, dtype=np.int64)
        self._code = np.zeros(slots, dtype=np.int64)
        self._aloft: list[_Flight] = []
        self._memory: list[Tensor] = []

    def enter(self, slots: Ints) -> None:
        """New owners for ``slots``."""
        self._owner[slots] += 1
        for slot in slots.tolist():
            self._numbers[slot] = []
        self._count[slots] = 0
        self._certainty[slots] = 0.0

    def leave(self, slots: Ints) -> None:
        """The owners of ``slots`` are gone; what is on its way to them is dropped."""
        self._owner[slots] += 1

    def send(self, news: Tensor, slots: Ints) -> None:
        """Start copying ``news`` [NEWS, at least B] of the rows ``slots`` [B]."""
        if self._memory:
            memory = self._memory.pop()
        else:
            memory = torch.empty(NEWS, self._rows, dtype=torch.int32, pin_memory=self._cuda)
        memory.copy_(news, non_blocking=True)
        self.add(memory, slots, ours=True)

    def add(self, memory: Tensor, slots: Ints, ours: bool = False) -> None:
        """Expect news of the rows ``slots`` in ``memory`` of the host's when what has been launched has ended."""
        done = None
        if self._cuda:
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        self._aloft.append(_Flight(memory, slots, self._owner[slots], done, ours))

    def land(self, keep: int) -> None:
        """Wait for all flights but the ``keep`` newest and note their news."""
        due = self._aloft[: len(self._aloft) - keep]
        self._aloft = self._aloft[len(due) :]
        for flight in due:
            if flight.done is not None:
                flight.done.synchronize()
            news = flight.memory.numpy()[:, : len(flight.slots)]
            fresh = self._owner[flight.slots] == flight.owners
            slots = flight.slots[fresh]
            place = self._count[slots]
            self._tokens[slots, place] = news[TOKEN, fresh]
            self._logprobs[slots, place] = news[LOGPROB, fresh].view(np.float32)
            self._certainty[slots] += news[CERTAINTY, fresh].view(np.float32)
            self._count[slots] += 1
            for slot in slots[(self._count[slots] + slots) % _TOGETHER == 0].tolist():
                self._convert(slot)
            self._code[slots] = news[CODE, fresh]
            if flight.ours:
                self._memory.append(flight.memory)

    def __del__(self) -> None:
        # The memory of a ring is given back by a host that does not know of the step that still writes there.
        for flight in self._aloft:
            if flight.done is not None:
                flight.done.synchronize()

    def codes(self, slots: Ints) -> Ints:
        """The newest code of each of ``slots``."""
        return self._code[slots]

    def said(self, slot: int) -> Said:
        """What has been heard of a slot's row."""
        self._convert(slot)
        tokens, n = tuple(self._numbers[slot]), int(self._count[slot])
        return Said(tokens, self._logprobs[slot, :n].copy(), float(self._certainty[slot]) / n if n else None)

    def _convert(self, slot: int) -> None:
        numbers = self._numbers[slot]
        numbers += self._tokens[slot, len(numbers) : self._count[slot]].tolist()
