"""Captured decode steps, one graph for each batch size and kind of step; on a CPU the step just runs.

A batch is filled up to the next size with a slot that belongs to nobody. Sizes are close enough together that the
filling costs little and few enough that capturing them all takes seconds (and once on a machine a second or two more
for each of more than 128 rows, products.py).

Usage: ``graphs.run(rows=37, tiled=False, filters=False)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thinkfast.engine.cuda.step import Step
from thinkfast.kernels.triton.attention import TILE_ROWS


def batch_sizes(most: int) -> list[int]:
    """Batch sizes to capture, ascending, the last at least ``most``."""
    sizes = [n for n in (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192) if n < most]
    sizes += list(range(256, min(most, 1024), 64)) + list(range(1024, most, 128))
    return [*sizes, most]


class Graphs:
    """Captures of ``step``; ``eos`` and ``stops`` are read where they are."""

    def __init__(self, step: Step, most: int, dummy: int, eos: Tensor, stops: Tensor) -> None:
        self.step, self.eos, self.stops = step, eos, stops
        self.sizes = batch_sizes(most)
        dev = eos.device
        self.active = torch.full((most,), dummy, dtype=torch.int32, device=dev)
        self.tiles = torch.full((max(1, most // 4), TILE_ROWS), -1, dtype=torch.int32, device=dev)
        # None: steps of that kind are not captured.
        self._graphs: dict[tuple[int, bool, bool], Any] = {}
        self._pool: Any = None

    def size(self, rows: int) -> int:
        """The batch size that ``rows`` rows run at."""
        return next(size for size in self.sizes if size >= rows)

    def room(self, size: int) -> int:
        """Tiles that a step of ``size`` rows has room for."""
        return size // 4

    def _eager(self, size: int, tiled: bool, filters: bool) -> None:
        tiles = self.tiles[: self.room(size)] if tiled else None
        self.step(self.active[:size], tiles, filters, self.eos, self.stops)

    def run(self, size: int, tiled: bool, filters: bool, capture: bool = True) -> None:
        """One step of the first ``size`` entries of ``active``."""
        key = (size, tiled, filters)
        self.prepare(*key, capture)
        if (graph := self._graphs[key]) is None:
            self._eager(*key)
        else:
            graph.replay()

    def prepare(self, size: int, tiled: bool, filters: bool, capture: bool = True) -> None:
        """Record a kind of step, unless it has been; may be called between any two steps."""
        key = (size, tiled, filters)
        if key not in self._graphs:
            self._graphs[key] = self._prepared(*key, capture) if self.active.device.type == "cuda" else None

    def _prepared(self, size: int, tiled: bool, filters: bool, capture: bool) -> Any:
        """One kind of step, recorded. The rows run before it, as nobody's, to compile and to measure what is new."""
        kept, tiles, turn = self.active.clone(), self.tiles.clone(), self.step.turn.clone()
        graph = None
        try:
            self.active.fill_(self.step.state.token.shape[0] - 1)
            self.tiles.fill_(-1)
            self._eager(size, tiled, filters)
            self.step.products.learn()
            if capture:
                graph = torch.cuda.CUDAGraph()
                # The pool is shared: graphs run one after another, and hold nothing between two steps.
                with torch.cuda.graph(graph, pool=self._pool):
                    self._eager(size, tiled, filters)
                self._pool = self._pool or graph.pool()
        finally:
            self.active.copy_(kept)
            self.tiles.copy_(tiles)
            self.step.turn.copy_(turn)
        return graph

    def forget(self, stops: Tensor) -> None:
        """Drop all captures because the table of stop strings lies elsewhere now."""
        self.stops = stops
        self._graphs.clear()
        self._pool = None  # it went with the last of its graphs
