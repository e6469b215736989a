"""What a model learns from: batches of whole examples with one loss mask, a pure function of (seed, step).

Why a function of the step: a killed run resumes exactly, with no reader state to save. Each epoch is a permutation
of the pool, made by hashing (seed, epoch, example), cut into batches of about `tokens_per_batch` real tokens. There
is no padding and no packing across examples: T tokens of n sequences lie flat (see models/ragged.py).

Usage: `Corpus(pool, tokens_per_batch=16_384, seed=0).batch(step)`
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thinkfast.data.pool import Example, Pool
from thinkfast.errors import InputError

__all__ = ["Batch", "Corpus", "Example", "Pool"]

BUCKET = 1024  # examples per window within which the order is by length, so that padded views stay small


@dataclass(frozen=True, slots=True)
class Batch:
    """n whole examples, flat.

    tokens [T] int64; lens [n] int64, summing to T; loss_mask [T] bool, True at positions whose NEXT token belongs to
    the same example's answer, its end token included (so an example's last position is always False).
    """

    tokens: torch.Tensor
    lens: torch.Tensor
    loss_mask: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return Batch(self.tokens.to(device), self.lens.to(device), self.loss_mask.to(device))

    def split(self, parts: int) -> list[Batch]:
        """At most ``parts`` batches of whole sequences, as even in tokens as that allows; none empty."""
        lens: list[int] = self.lens.tolist()
        owner = torch.tensor(_even(lens, min(parts, len(lens))))
        of_token = owner.repeat_interleave(self.lens.cpu(), output_size=len(self.tokens))
        found = []
        for part in range(int(owner.max()) + 1):
            mine = (of_token == part).to(self.tokens.device)
            lens_of_part = self.lens[(owner == part).to(self.lens.device)]
            found.append(Batch(self.tokens[mine], lens_of_part, self.loss_mask[mine]))
        return found


def _even(sizes: list[int], parts: int) -> list[int]:
    """The part of each item: longest first to the emptiest part, then items change places while that helps."""
    loads, owner = [0] * parts, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owner[i] = loads.index(min(loads))
        loads[owner[i]] += sizes[i]
    while (swap := _better(sizes, loads, owner)) is not None:
        heavy, light, out, back = swap
        gain = sizes[out] - (0 if back is None else sizes[back])
        loads[heavy], loads[light] = loads[heavy] - gain, loads[light] + gain
        owner[out] = light
        if back is not None:
            owner[back] = heavy
    return owner


def _better(sizes: list[int], loads: list[int], owner: list[int]) -> tuple[int, int, int, int | None] | None:
    """Heaviest part, lightest part, an item to move between them, and one to come back; None where nothing helps."""
    heavy, light = loads.index(max(loads)), loads.index(min(loads))
    gap = loads[heavy] - loads[light]
    best, found = gap, None
    theirs: list[int | None] = [None, *(i for i, o in enumerate(owner) if o == light)]
    for out in (i for i, o in enumerate(owner) if o == heavy):
        for back in theirs:
            left = abs(gap - 2 * (sizes[out] - (0 if back is None else sizes[back])))
            if left < best:
                best, found = left, (heavy, light, out, back)
    return found


class Corpus:
    """Endless batches over a pool; `batch(step)` depends on nothing but the pool, seed and step."""

    def __init__(self, pool: Pool, *, tokens_per_batch: int, seed: int = 0, bucket: int = BUCKET) -> None:
        """
        Args:
            pool: tokenised examples.
            tokens_per_batch: real tokens per batch, met on average over an epoch and within one example each time.
            seed: of the order.
            bucket: examples per window that is sorted by length before batches are cut; 0 or 1 for no sorting.

        Raises:
            InputError: the longest example does not fit a batch.
        """
        self.pool = pool
        self.seed = seed
        self.bucket = bucket
        self._lens = np.diff(pool.starts)
        total = int(pool.starts[-1])
        self.batches_per_epoch = max(1, round(total / max(1, tokens_per_batch)))
        # Batch i takes the examples that start in [i, i + 1) * width: never empty while no example is wider.
        self._width = total / self.batches_per_epoch
        longest = int(self._lens.max())
        if tokens_per_batch < 1 or (longest > self._width and self.batches_per_epoch > 1):
            raise InputError(
                f"a batch has {tokens_per_batch} tokens (batch_tokens), but the longest example has {longest} tokens",
                remedy=f"raise batch_tokens well above {longest}, or leave long examples out",
            )
        self._cached: tuple[int, list[NDArray[np.int64]]] | None = None

    def batch(self, step: int) -> Batch:
        """The batch of one step. Raises InputError for a negative step."""
        members = self.members(step)
        lens = self._lens[members]
        ends = np.cumsum(lens)
        local = np.arange(int(ends[-1])) - np.repeat(ends - lens, lens)
        tokens = self.pool.tokens[np.repeat(self.pool.starts[members], lens) + local]
        prompts = np.repeat(self.pool.prompt_lens[members], lens)
        mask = (local >= prompts - 1) & (local < np.repeat(lens, lens) - 1)
        return Batch(_tensor(tokens.astype(np.int64)), _tensor(lens), _tensor(mask))

    def members(self, step: int) -> NDArray[np.int64]:
        """Indices of the pool's examples in the batch of one step."""
        if step < 0:
            raise InputError(f"step is {step}", remedy="count steps from 0")
        epoch, i = divmod(step, self.batches_per_epoch)
        if self._cached is None or self._cached[0] != epoch:
            self._cached = (epoch, self._epoch(epoch))
        return self._cached[1][i]

    def __iter__(self) -> Iterator[Batch]:
        step = 0
        while True:
            yield self.batch(step)
            step += 1

    def _epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        n = len(self.pool)
        order = np.argsort(_hashes(n, self.seed, 2 * epoch), kind="stable")
        if self.bucket > 1:
            order = order[np.lexsort((self._lens[order], np.arange(n) // self.bucket))]
        starts = np.cumsum(self._lens[order]) - self._lens[order]
        edges = np.searchsorted(starts, np.arange(1, self.batches_per_epoch) * self._width, side="left")
        batches = np.split(order, edges)
        # Sorting leaves short batches before long ones; the order of the batches is mixed again.
        mixed = np.argsort(_hashes(len(batches), self.seed, 2 * epoch + 1), kind="stable")
        return [batches[i] for i in mixed]


def _hashes(n: int, seed: int, stream: int) -> NDArray[np.uint64]:
    """Hash counters 0..n - 1 (splitmix64): unlike numpy's generators promised to stay the same for ever."""
    with np.errstate(over="ignore"):
        keys = np.array([seed % 2**64, stream], np.uint64)
        start = _mix(_mix(keys[:1]) + keys[1:])
        counters: NDArray[np.uint64] = np.arange(n, dtype=np.uint64)
        return _mix(np.add(start, counters, dtype=np.uint64))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
