"""Input projections of many rows without the norm in front of them.

RMS norm divides a row by one number and multiplies its columns by weights. A product may be given rows that have yet to
be divided, with the weights multiplied into its own: the kernel behind it divides (kernels/triton/mixer.py). So cuBLAS
adds the residual to a feed-forward block's output, the next input projection takes it as it is, and a kernel between
the two is gone: 2 to 3 % of a step at 256 rows with d_state 16, up to 1.6 % at 512 (H100, docs/lab.md). It costs a
second copy of those projections, which the memory plan counts as packed weights and leaves out where keys and values
want the room.

Attention keeps its norm: the kernel for samples of one prompt would have to read 16 rows for each program, and a
teacher's step hardly changes without a norm (0.2 % at 256 rows).

Usage: ``folded(model)``; ``folded_bytes(model)`` before anything is allocated.
Source: RMSNorm, arXiv 1910.07467, equation 4.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from thinkfast.models.decoder import Block, Decoder
from thinkfast.models.fp8 import is_fp8
from thinkfast.models.mixers import Mamba

# A residual that is not divided would not fit into fp16.
_DTYPES = (torch.bfloat16, torch.float32)


def _served(model: Decoder) -> Iterator[tuple[int, Block, nn.Linear]]:
    """Blocks that can do without their first norm, by number, with their input projections."""
    # A bias must not be divided with what it is added to.
    if is_fp8(model) or model.head_weight.dtype not in _DTYPES or model.spec.ssm_bias:
        return
    # The first block's rows come from the embedding with their norm.
    for number, block in enumerate(model.blocks):
        if number and isinstance(block.mixer, Mamba):
            yield number, block, block.mixer.in_proj


def folded(model: Decoder) -> dict[int, nn.Linear]:
    """By block: the input projection with its weight [N, D] times the norm's [D]."""
    found = {}
    for number, block, into in _served(model):
        found[number] = nn.Linear(into.in_features, into.out_features, bias=False, device="meta")
        found[number].weight = nn.Parameter(into.weight * block.input_norm.weight, requires_grad=False)
    return found


def folded_bytes(model: Decoder) -> int:
    """What ``folded`` takes."""
    return sum(into.weight.nbytes for _, _, into in _served(model))
