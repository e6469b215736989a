"""Ragged: many sequences laid end to end, so that no linear layer ever sees padding.

Legend: T total tokens, n sequences, L the longest of them.

Training batches, packed documents and prompt prefill share this one layout. Only the sequence mixers look at a
right-padded view [n, L, ...]; both are causal, so what stands to the right of a sequence's end cannot reach it.

Usage: ``r = Ragged(torch.tensor([5, 3])); r.unpad(r.pad(x))`` is ``x``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Most positions of a padded view for a token in it.
_PADDED = 2


def _cut(lens: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of ``lens``, the longest first and none of them 0, that are padded to twice their sum at most."""
    begin = total = 0
    for end, length in enumerate(lens):
        if lens[begin] * (end + 1 - begin) > _PADDED * (total + length):
            yield begin, end
            begin, total = end, 0
        total += length
    yield begin, len(lens)


@dataclass(frozen=True, slots=True)
class Alike:
    """The sequences of a Ragged by length, the longest first, in ``parts``, without those of no token. order, back: [T]
    where their tokens are taken from, and where those of the Ragged then lie. sequences: [n] which ones they are, those
    of no token last.
    """

    order: Tensor
    back: Tensor
    parts: tuple[Ragged, ...]
    sequences: Tensor

    def split(self, *values: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Of each of ``values`` [T, ...] every part's tokens."""
        sizes = [part.total for part in self.parts]
        return (value[self.order].split_with_sizes(sizes) for value in values)

    def by_sequence(self, found: Tensor) -> Tensor:
        """What the parts' sequences have, one after the other, by sequence of the Ragged; zeros for no token."""
        out = found.new_zeros(len(self.sequences), *found.shape[1:])
        return out.index_copy(0, self.sequences[: len(found)], found)


class Ragged:
    """The lengths of the sequences in a flat batch, and the index maps they imply."""

    def __init__(self, lens: Tensor, known: Sequence[int] | None = None) -> None:
        self.lens = lens
        # Reading lengths back from a GPU would wait for all it has to do; ``known`` are the same numbers on the host.
        host: list[int] = lens.tolist() if known is None else list(known)
        self._known = host
        self.n = len(host)
        self.total = sum(host)
        self.max_len = max(host, default=0)
        # Equal lengths turn padding into a reshape: the common case of forked or trained batches.
        self.rectangular = self.total == self.n * self.max_len
        self._maps: dict[tuple[int, int], Tensor] = {}

    @cached_property
    def starts(self) -> Tensor:
        """[n] index of each sequence's first token."""
        return torch.cumsum(self.lens, 0) - self.lens

    @property
    def last(self) -> Tensor:
        """[n] index of each sequence's last token."""
        return self.starts + self.lens - 1

    @cached_property
    def sequence(self) -> Tensor:
        """[T] the sequence each token belongs to."""
        ids = torch.arange(self.n, device=self.lens.device)
        return torch.repeat_interleave(ids, self.lens, output_size=self.total)

    @cached_property
    def positions(self) -> Tensor:
        """[T] each token's position within its sequence."""
        return torch.arange(self.total, device=self.lens.device) - self.starts[self.sequence]

    @cached_property
    def alike(self) -> Alike | None:
        """The same sequences in parts of like lengths, where one padded view of all of them would hold more than twice
        as many positions as there are tokens; else None.
        """
        if self.n * self.max_len <= _PADDED * self.total:
            return None
        order = torch.argsort(self.lens, descending=True, stable=True)
        lens, known = self.lens[order], sorted(filter(None, self._known), reverse=True)
        first = (self.starts[order] - (torch.cumsum(lens, 0) - lens)).repeat_interleave(lens, output_size=self.total)
        at = first + torch.arange(self.total, device=lens.device)
        back = torch.empty_like(at)
        back[at] = torch.arange(self.total, device=lens.device)
        return Alike(at, back, tuple(Ragged(lens[a:b], known[a:b]) for a, b in _cut(known)), order)

    def _flat(self, length: int, before: int = 0) -> Tensor:
        """[T] where each token lies in a padded view of ``length`` positions, the first ``before`` of them empty."""
        if (length, before) not in self._maps:
            self._maps[length, before] = self.sequence * length + (self.positions + before)
        return self._maps[length, before]

    @cached_property
    def valid(self) -> Tensor:
        """[n, L] True where the padded view holds a token."""
        return torch.arange(self.max_len, device=self.lens.device)[None, :] < self.lens[:, None]

    def pad(self, x: Tensor, length: int | None = None, before: int = 0) -> Tensor:
        """[T, ...] to a padded [n, before + length, ...]: ``before`` zeros, the tokens, zeros after each end.

        ``length`` is L where None, and may be more.
        """
        size = before + (self.max_len if length is None else length)
        if self.rectangular and size == self.max_len:
            return x.reshape(self.n, size, *x.shape[1:])
        out = x.new_zeros((self.n * size, *x.shape[1:]))
        return out.index_copy(0, self._flat(size, before), x).view(self.n, size, *x.shape[1:])

    def unpad(self, y: Tensor) -> Tensor:
        """[n, length, ...] back to [T, ...]; ``length`` may be more than L."""
        length = y.shape[1]
        flat = y.reshape(self.n * length, *y.shape[2:])
        return flat if self.rectangular and length == self.max_len else flat.index_select(0, self._flat(length))
