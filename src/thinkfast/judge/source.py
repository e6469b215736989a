"""Where chains come from: an engine that runs, or a log that is played again, under one seam and one clock.

`solve` knows this seam alone, so the same scheduling, voting and stopping that answers live can be replayed from a log
(`report.replay`), at other budgets and under other rules.

Usage: ``Live(llm).stream(requests, seconds=5)``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from thinkfast.engine.llm import LLM
from thinkfast.engine.request import Chain, Request
from thinkfast.engine.session import Stats


class Source(Protocol):
    """What `solve` asks of an engine; see `engine.llm.LLM` for the verbs."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    @property
    def rows(self) -> int:
        """Most chains that run together."""
        ...

    @property
    def flat(self) -> bool:
        """Whether a step costs the same for any number of rows (GPUs, nearly)."""
        ...

    @property
    def stats(self) -> Stats:
        """Counters that go on counting."""
        ...

    @property
    def running(self) -> int:
        """Chains in flight."""
        ...

    @property
    def room(self) -> int:
        """Rows neither running nor spoken for."""
        ...

    def now(self) -> float:
        """Seconds on the source's clock."""
        ...

    def stream(self, requests: Iterable[Request | None], seconds: float | None) -> Iterator[Chain]:
        """Chains as they finish; a None among the requests says "nothing yet"."""
        ...

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one sample of it, before the next step."""
        ...


@dataclass(frozen=True, slots=True)
class Live:
    """An engine on the wall clock."""

    llm: LLM

    @property
    def name(self) -> str:
        return self.llm.loaded.name

    @property
    def rows(self) -> int:
        return self.llm.plan.max_batch

    @property
    def flat(self) -> bool:
        return self.llm.loaded.model.head_weight.device.type != "cpu"

    @property
    def stats(self) -> Stats:
        return self.llm.stats

    @property
    def running(self) -> int:
        return self.llm.running

    @property
    def room(self) -> int:
        return self.llm.room

    def now(self) -> float:
        return time.monotonic()

    def stream(self, requests: Iterable[Request | None], seconds: float | None) -> Iterator[Chain]:
        return self.llm.stream(requests, seconds)

    def cancel(self, request_id: str, index: int | None = None) -> None:
        self.llm.cancel(request_id, index)
