"""SSM slots of all Mamba layers: one fixed-size state a row, dense, copied at a fork.

Rows are kept in 0 .. B - 1, so a decode step works on plain views and updates them in place, with no gather.

Legend: A Mamba layers, B rows, H heads, P head dim, N state, C conv channels, W convolution width.

Usage: ``slots.store(prompt, states, i); slots.fork(prompt, first_row, count); slots.views(rows)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinkfast.engine.memory import pool
from thinkfast.engine.native import LayerMemory
from thinkfast.models.mixers import SSMState
from thinkfast.models.precision import wide
from thinkfast.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class SSMView:
    """One layer's rows (models.mixers.SSMCache): conv [B, W - 1, C], ssm [B, H, P, N]."""

    conv: Tensor
    ssm: Tensor


class SSMSlots:
    """States of rows and, until their last fork, of prompts; the recurrence's in at least fp32."""

    def __init__(self, spec: ModelSpec, max_rows: int, dtype: torch.dtype, device: torch.device) -> None:
        layers = spec.n_layers - spec.n_attention
        conv = (layers, max_rows, spec.d_conv - 1, spec.conv_channels)
        self._conv = pool(conv, dtype, device)
        # N before P in memory: C^T S then reads along rows, which is 1.6 times faster on a CPU than S C.
        ssm = (layers, max_rows, spec.n_heads, spec.d_state, spec.head_dim)
        # In bf16 the rounding of every step piles up: 19 times the KL of one pass after 2,000 steps (docs/export.md).
        self._ssm = pool(ssm, wide(dtype), device).transpose(-1, -2)
        self._prompts: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def prompts(self) -> int:
        """Prompts whose state is held."""
        return len(self._prompts)

    def store(self, ids: Sequence[int], states: Sequence[SSMState]) -> None:
        """Keep the states [n, ...] of n prompts, one SSMState a layer."""
        conv, ssm = torch.stack([s.conv for s in states]), torch.stack([s.ssm for s in states])
        for i, prompt in enumerate(ids):
            self._prompts[prompt] = conv[:, i : i + 1].clone(), ssm[:, i : i + 1].clone()

    def read(self, prompt: int) -> Iterator[SSMState]:
        """A prompt's state, layer by layer."""
        return (SSMState(conv, ssm) for conv, ssm in zip(*self._prompts[prompt], strict=True))

    def fork(self, prompt: int, first_row: int, count: int) -> None:
        """Copy a prompt's state into ``count`` rows."""
        conv, ssm = self._prompts[prompt]
        rows = slice(first_row, first_row + count)
        self._conv[:, rows], self._ssm[:, rows] = conv, ssm

    def drop(self, prompt: int) -> None:
        """Forget a prompt's state; rows keep theirs."""
        self._prompts.pop(prompt, None)

    def move(self, src: Tensor, dst: Tensor) -> None:
        """Copy row src[i] to row dst[i]."""
        self._conv[:, dst], self._ssm[:, dst] = self._conv[:, src], self._ssm[:, src]

    @property
    def memory(self) -> list[LayerMemory]:
        """Each layer's tensors, the state as it lies."""
        return [LayerMemory((conv, ssm.transpose(-1, -2))) for conv, ssm in zip(self._conv, self._ssm, strict=True)]

    def views(self, rows: int) -> list[SSMView]:
        """Each layer's states of the first ``rows`` rows."""
        return [SSMView(conv[:rows], ssm[:rows]) for conv, ssm in zip(self._conv, self._ssm, strict=True)]
