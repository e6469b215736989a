"""The memory plan: what the engine will hold, derived from the model's sizes before anything is allocated.

Usage: ``print(make_plan(spec, n_params, max_batch=64, max_len=1024, itemsize=4, available=None))``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from thinkfast.engine.cache import PAGE
from thinkfast.errors import CapacityError, InputError
from thinkfast.models.room import told
from thinkfast.models.spec import ModelSpec
from thinkfast.models.ssd import CHUNK
from thinkfast.typed import whole

# More rows than anyone asks for.
_MOST_ROWS = 1 << 24
# Prompts prefilled in one pass hold shared pages for a moment even when they then become a row's own.
PREFILL_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Sizes the engine runs within; bytes are upper bounds, KV memory is only touched as it fills.

    prompts: how many may have samples in flight and others that wait; each keeps a state for those. largest: the most
    rows that all fit at their full length, None where nobody knows what is there.
    """

    max_batch: int
    max_len: int
    prompts: int
    pages: int
    weight_bytes: int
    kv_bytes: int
    state_bytes: int
    work_bytes: int
    packed_bytes: int
    available_bytes: int | None
    prefill_tokens: int = PREFILL_TOKENS
    state_dtype: torch.dtype | None = None
    graph_bytes: int = 0
    largest: int | None = None

    @property
    def admissible_pages(self) -> int:
        """KV pages that admitted samples may reserve; the rest is for prompts between prefill and fork."""
        return min(self.pages, self._full_pages)

    @property
    def _full_pages(self) -> int:
        """What all rows take at their full length."""
        return self.max_batch * -(-self.max_len // PAGE)

    @property
    def needed_bytes(self) -> int:
        """What the engine adds to the weights, which are loaded already."""
        return self.kv_bytes + self.state_bytes + self.work_bytes + self.packed_bytes + self.graph_bytes

    @property
    def fits(self) -> bool:
        """Whether that is there, as far as it is known."""
        return self.available_bytes is None or self.needed_bytes <= self.available_bytes

    @property
    def all_at_length(self) -> bool:
        """Whether it fits with pages for all rows at their full length."""
        return self.fits and (not self.pages or self.pages >= self._full_pages)

    def __str__(self) -> str:
        parts = (
            ("weights", self.weight_bytes),
            (f"KV, {self.pages} pages of {PAGE} tokens", self.kv_bytes),
            ("SSM states", self.state_bytes),
            ("workspace", self.work_bytes),
            ("packed weights", self.packed_bytes),
            ("graphs and kernels", self.graph_bytes),
            ("needed beside the weights", self.needed_bytes),
            ("available", self.available_bytes),
        )
        head = f"{self.max_batch} rows of up to {self.max_len} tokens"
        lines = [head, *told(parts)]
        if self.largest is not None:
            lines.append(f"  {'largest batch of such rows':<36}{self.largest:>14,}")
        return "\n".join(lines)


def make_plan(
    spec: ModelSpec, max_batch: int, max_len: int | None, itemsize: int, available: int | None, packed: int = 0
) -> MemoryPlan:
    """The plan for ``max_batch`` rows of ``max_len`` tokens (None: the model's own limit), with ``packed`` bytes for a
    second copy of the weights that the compiled step reads.

    Errors: InputError where a size is out of range; CapacityError, with the largest batch that fits, where the plan
    needs more than ``available`` bytes.
    """
    return fitting_plan(spec, max_batch, max_len, lambda rows, n: _plan(spec, rows, n, itemsize, available, packed))


def fitting_plan(
    spec: ModelSpec, max_batch: int, max_len: int | None, plan_of: Callable[[int, int], MemoryPlan]
) -> MemoryPlan:
    """``plan_of(max_batch, max_len)``, where the sizes are in range and what it needs is there.

    Errors: as make_plan.
    """
    if whole("max_batch", max_batch) <= 0:
        raise InputError(f"max_batch is {max_batch}", remedy="pass max_batch=1 or more")
    length = spec.max_positions if max_len is None else whole("max_len", max_len)
    if length < 2:
        raise InputError(f"max_len is {length}", remedy="pass at least 2: a prompt token and a new one")
    if spec.n_attention and length > spec.max_positions:
        raise InputError(
            f"max_len is {length}, and the model was made for {spec.max_positions} positions",
            remedy=f"pass max_len={spec.max_positions} or less",
        )
    plan = plan_of(max_batch, length)
    if plan.available_bytes is not None:
        plan = replace(plan, largest=_most(lambda rows: plan_of(rows, length).all_at_length, _MOST_ROWS))
    if not plan.fits:
        rows = _most(lambda rows: plan_of(rows, length).fits, max_batch)
        # Callers of the API and users of the command line have other names for the same two sizes.
        remedy = (
            f"pass max_batch={rows} or a smaller max_len: a batch of {rows}, or shorter chains"
            if rows
            else "pass a smaller max_len: shorter chains; or free memory"
        )
        raise CapacityError(f"the engine does not fit in memory: {plan}", remedy=remedy)
    return plan


def _most(holds: Callable[[int], bool], most: int) -> int:
    """The largest number up to ``most`` for which that ``holds``, as it does for all smaller ones; else 0."""
    return bisect_left(range(1, most + 1), True, key=lambda rows: not holds(rows))


def prefill_bytes(spec: ModelSpec, itemsize: int) -> int:
    """Most bytes that a prefill holds for a token of its pass, its KV included, its SSM states not."""
    d, heads, kv = spec.d_model, spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    # q, k and v; q and k rotated; all in order of their lengths, and padded to twice as many, keys and values for every
    # head; what heads gather padded, without, and ordered.
    attention = 4 * (heads + 2 * kv) + heads + kv + 9 * heads if spec.n_attention else 0
    mixer = 0
    if spec.is_student:
        # Padded to twice as many and a token a chunk, which has 17 or more: the convolution and its inputs, decays
        # within chunks, the states between them, and y, in fp32 whatever else is.
        channels, chunk = spec.conv_channels, 2 * spec.n_heads * CHUNK + 3 * heads * spec.d_state // CHUNK
        padded = 4 * channels + chunk + spec.n_heads * (4 + spec.d_state) + 6 * heads
        padded = -(-padded * 36 * max(4, itemsize) // (17 * itemsize))
        mixer = spec.in_proj_rows + channels + padded + 2 * heads
    # Beside them the residual, what was normed, and what the mixer gives.
    widest = 6 * d + max(attention, mixer, 4 * spec.d_ff)
    # Tokens, positions, places and angles.
    return widest * itemsize + spec.kv_bytes_per_token(itemsize) + 96 + 2 * spec.head_dim * itemsize


def mixer_bytes(spec: ModelSpec, itemsize: int) -> int:
    """Bytes of one layer's states of a prompt while a prefill makes them, beside those between chunks."""
    if not spec.is_student:
        return 0
    ssm, conv = spec.n_heads * spec.head_dim * spec.d_state, spec.d_conv * spec.conv_channels
    return (7 * ssm + 2 * conv) * max(4, itemsize)


def _plan(spec: ModelSpec, rows: int, length: int, itemsize: int, available: int | None, packed: int) -> MemoryPlan:
    pages = rows * -(-length // PAGE) + PREFILL_TOKENS // PAGE + -(-length // PAGE) + rows if spec.n_attention else 0
    tails = rows * PAGE
    kv = (pages * PAGE + tails) * spec.kv_bytes_per_token(itemsize)
    # A unit's scores and partial result for every page and head, a prefill, logits and history.
    units = (pages + rows) * spec.n_heads * (PAGE + spec.head_dim) * itemsize if spec.n_attention else 0
    work = units + PREFILL_TOKENS * prefill_bytes(spec, itemsize) + rows * (spec.vocab_size * 4 * 4 + length * 12)
    if spec.n_attention:
        # Behind the pieces of a longer prompt: one layer's keys and values, out of their pages and with a piece's own,
        # and the masks of 256 queries.
        work += length * (3 * spec.kv_bytes_per_token(itemsize) // spec.n_attention + 256 * (itemsize + 1))
    work += rows * mixer_bytes(spec, itemsize)
    # Twice: a prompt's state waits beside the rows that are forked from it. In fp32 whatever the weights are in.
    state = 2 * rows * spec.state_bytes(max(itemsize, 4))
    return MemoryPlan(rows, length, rows, pages, spec.n_params * itemsize, kv, state, work, packed, available)
