"""The memory plan on a GPU: as engine.plan's, with every pool counted as it will be allocated.

A GPU's memory is taken when it is asked for, not when it is written, so the pages are cut to what is there: rows that
do not find theirs wait.

Usage: ``print(make_cuda_plan(spec, 512, 2304, torch.bfloat16, torch.bfloat16, available))``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from thinkfast.engine.cache import PAGE
from thinkfast.engine.plan import MemoryPlan, fitting_plan
from thinkfast.kernels.triton.mixer import HOLD
from thinkfast.kernels.triton.product import MOST_ROWS
from thinkfast.models.spec import ModelSpec

# Prompt tokens between two steps: enough to fill the chip, 27 ms of a model of a billion weights.
PREFILL_TOKENS = 8192
# Prompts whose samples take turns at the rows; beyond, requests wait until one has begun all of its own.
OPEN_PROMPTS = 256
# CUDA graphs, cuBLAS's workspace, compiled kernels.
GRAPH_BYTES = 1 << 30
# Copies of weights that save 2 % of a step may take a fiftieth of the memory each.
_PACKED = 50


def slot_bytes(spec: ModelSpec, itemsize: int, state_itemsize: int) -> int:
    """Bytes of one slot's SSM states over all Mamba layers."""
    if not spec.is_student:
        return 0
    ssm = spec.n_heads * (spec.head_dim * spec.d_state * state_itemsize + 4 + 4 * HOLD)
    held = HOLD * spec.ssm_kv_heads * (spec.head_dim + spec.d_state)
    return (spec.n_layers - spec.n_attention) * (ssm + (spec.d_conv * spec.conv_channels + held) * itemsize)


def prefill_bytes(spec: ModelSpec, itemsize: int) -> int:
    """Most bytes that a prefill holds for a token of its pass, beside what it leaves in slots and pages."""
    d, heads, kv = spec.d_model, spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    # q, k and v, rotated, ordered by length, and padded to twice as many; what heads gather padded, copied, ordered.
    attention = 11 * heads + 9 * kv if spec.n_attention else 0
    mixer = spec.in_proj_rows + spec.conv_channels + heads if spec.is_student else 0
    # Beside them the residual, and what was normed.
    widest = 2 * d + max(attention, mixer, 3 * spec.d_ff)
    # Positions, places and angles.
    return widest * itemsize + 64 + 2 * spec.head_dim * itemsize


def _plan(
    spec: ModelSpec,
    rows: int,
    length: int,
    dtype: torch.dtype,
    state: torch.dtype,
    available: int | None,
    packed: Sequence[int],
) -> MemoryPlan:
    size = dtype.itemsize
    wide = max(3 * spec.d_ff, spec.in_proj_rows if spec.is_student else 0) + 6 * spec.d_model
    prompts = min(rows, OPEN_PROMPTS)
    # Logits of a step, of a prefill, and of prompts that have begun and not all of their samples.
    work = (2 * rows + prompts) * spec.vocab_size * size
    work += rows * (wide * size + 32 * spec.n_heads * spec.head_dim)
    work += PREFILL_TOKENS * prefill_bytes(spec, size)
    # Behind the pieces of a longer prompt: one layer's keys and values out of their pages, and with a piece's own.
    work += 2 * length * spec.kv_bytes_per_token(size) // max(1, spec.n_attention)
    # A prompt's state waits beside the rows that are forked from it; the last slot fills up a batch.
    states = (rows + prompts + 1) * slot_bytes(spec, size, state.itemsize)
    page = PAGE * spec.kv_bytes_per_token(size)
    pages = rows * -(-length // PAGE) if spec.n_attention else 0
    kv = (pages + 1) * page if pages else 0
    room, extra = None if available is None else available - work - states - GRAPH_BYTES, 0
    # Steps of few rows have no use for it, and where room is short pages serve better.
    for one in packed if rows > MOST_ROWS else ():
        if available is not None and room is not None and (room < kv + extra + one or one > available // _PACKED):
            break
        extra += one
    if room is not None and pages and room < kv:
        pages = max(-(-length // PAGE), room // page - 1)
        kv = (pages + 1) * page
    weights = spec.n_params * size
    return MemoryPlan(
        rows, length, prompts, pages, weights, kv, states, work, extra, available, PREFILL_TOKENS, state, GRAPH_BYTES
    )


def make_cuda_plan(
    spec: ModelSpec,
    max_batch: int,
    max_len: int | None,
    dtype: torch.dtype,
    state: torch.dtype,
    available: int | None,
    packed: Sequence[int] = (),
) -> MemoryPlan:
    """The plan for ``max_batch`` rows of ``max_len`` tokens (None: the model's own limit); rows share what pages fit.
    ``packed``: bytes of weights that may be kept in a second form for steps of many rows, what is worth most first
    (folding.py): as many as there is room for.

    Errors: InputError where a size is out of range; CapacityError, with the largest batch that fits, where states,
    workspace and the pages of one row need more than ``available`` bytes.
    """
    return fitting_plan(spec, max_batch, max_len, lambda rows, n: _plan(spec, rows, n, dtype, state, available, packed))
