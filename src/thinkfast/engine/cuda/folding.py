"""Products of many rows without the norms in front of them.

RMS norm divides a row by one number and multiplies its columns by weights. A product may be given rows that have yet to
be divided, with the weights multiplied into its own: what comes behind it divides. So cuBLAS adds the residual to what
goes in front, and its sum is multiplied as it is. A kernel between two products is gone in front of a Mamba block's
input projection, where the mixer divides (kernels/triton/mixer.py): 2 to 3 % of a step at 256 rows with d_state 16, up
to 1.6 % at 512 (H100, docs/lab.md). In front of gate and up a smaller one is left beside the product, which divides in
the end (gated.py): another 2 %, and 0.3 %.

It costs a second copy of these weights. The memory plan counts them as packed weights, input projections first, and
leaves out what is a larger part of the memory than of a step, or what keys and values want the room of.

Attention's projection keeps its norm: the kernel for samples of one prompt would have to read 16 rows for each program,
and a teacher's step hardly changes without a norm (0.2 % at 256 rows).

Usage: ``folded(model, plan.packed_bytes)``; ``folded_bytes(model)`` before anything is allocated.
Source: RMSNorm, arXiv 1910.07467, equation 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thinkfast.kernels.triton.product import can_cut
from thinkfast.models.decoder import Decoder
from thinkfast.models.fp8 import is_fp8
from thinkfast.models.mixers import Mamba

# A residual that is not divided would not fit into fp16.
_DTYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class Folded:
    """A block's projections times the norms' weights: into [N, D] of a Mamba mixer, gate_up [2 F, D]; None where the
    norm stays.
    """

    into: nn.Linear | None = None
    gate_up: Tensor | None = None


def _inputs(model: Decoder) -> dict[int, nn.Linear]:
    """By block, the input projections that can take what has not been normed; the first block's rows come from the
    embedding with their norm.
    """
    return {n: block.mixer.in_proj for n, block in enumerate(model.blocks) if n and isinstance(block.mixer, Mamba)}


def folded_bytes(model: Decoder) -> tuple[int, int]:
    """What copies of all input projections take, and of all gates and ups; 0 where there is nothing to copy."""
    # A bias would be divided with what it is added to.
    if is_fp8(model) or model.head_weight.dtype not in _DTYPES or model.spec.ssm_bias:
        return 0, 0
    ups = [block.mlp.gate_up.weight for block in model.blocks]
    # Only gated.py divides behind gate and up.
    second = sum(up.nbytes for up in ups if can_cut(up, up.shape[1]))
    return sum(into.weight.nbytes for into in _inputs(model).values()), second


def folded(model: Decoder, room: int) -> list[Folded]:
    """By block, what there is ``room`` bytes for: input projections, then gates and ups, all of a kind or none."""
    first, second = folded_bytes(model)
    inputs = _inputs(model) if 0 < first <= room else {}
    ups = 0 < second <= room - first
    found = []
    for number, block in enumerate(model.blocks):
        copy = None
        if (into := inputs.get(number)) is not None:
            copy = nn.Linear(into.in_features, into.out_features, bias=False, device="meta")
            copy.weight = nn.Parameter(into.weight * block.input_norm.weight, requires_grad=False)
        found.append(Folded(copy, block.mlp.gate_up.weight * block.post_norm.weight if ups else None))
    return found
