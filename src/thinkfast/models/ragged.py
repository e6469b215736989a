"""Ragged: many sequences laid end to end, so that no linear layer ever sees padding.

Legend: T total tokens, n sequences, L the longest of them.

Training batches, packed documents and prompt prefill share this one layout. Only the sequence mixers look at a
right-padded view [n, L, ...]; both are causal, so what stands to the right of a sequence's end cannot reach it.

Usage: ``r = Ragged(torch.tensor([5, 3])); r.unpad(r.pad(x))`` is ``x``.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class Ragged:
    """The lengths of the sequences in a flat batch, and the index maps they imply."""

    def __init__(self, lens: Tensor) -> None:
        self.lens = lens
        host: list[int] = lens.tolist()
        self.n = len(host)
        self.total = sum(host)
        self.max_len = max(host, default=0)
        # Equal lengths turn padding into a reshape: the common case of forked or trained batches.
        self.rectangular = self.total == self.n * self.max_len

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
    def _flat(self) -> Tensor:
        return self.sequence * self.max_len + self.positions

    @cached_property
    def valid(self) -> Tensor:
        """[n, L] True where the padded view holds a token."""
        return torch.arange(self.max_len, device=self.lens.device)[None, :] < self.lens[:, None]

    def pad(self, x: Tensor) -> Tensor:
        """[T, ...] to a right-padded [n, L, ...] with zeros after each end."""
        shape = (self.n, self.max_len, *x.shape[1:])
        if self.rectangular:
            return x.reshape(shape)
        out = x.new_zeros((self.n * self.max_len, *x.shape[1:]))
        return out.index_copy(0, self._flat, x).view(shape)

    def unpad(self, y: Tensor) -> Tensor:
        """[n, L, ...] back to [T, ...]."""
        flat = y.reshape(self.n * self.max_len, *y.shape[2:])
        return flat if self.rectangular else flat.index_select(0, self._flat)
