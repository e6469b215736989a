"""How far a bf16 run drifts from the fp32 one over thousands of steps, with weights, KV and SSM state all rounded.

Two things part bf16 from fp32: every pass rounds weights and activations, and stepping also rounds the state, again
and again, where errors can pile up (decays near one, sums that swallow small terms). Only the second is drift. So the
same bf16 weights are also run as one parallel pass, whose scan keeps its state in fp32, and what is bounded is how
much farther from fp32 the stepped run ends up: the median KL divergence of its next-token distributions over the last
quarter of the steps, over that of the parallel pass at the same positions. All three see the same tokens.

Legend: S steps, V vocabulary.

Usage: ``check, curve = drift(loaded, chains, steps=2000)``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

import torch
from torch import Tensor

from thinkfast.models.loading import Loaded
from thinkfast.models.ragged import Ragged
from thinkfast.serve.parity.own import step_logits
from thinkfast.serve.parity.report import Check, Curve
from thinkfast.serve.parity.sample import Greedy

STEPS = 2000
BOUND = 3.0
# Below this a median is the rounding of the logits themselves, and a ratio of two such says nothing.
FLOOR = 1e-6
POINTS = 20
HEAD = 8


def drift(loaded: Loaded, chains: Sequence[Greedy], steps: int) -> tuple[Check, Curve]:
    """The check, and the median KL of each twentieth of the run, stepped and parallel.

    The text is the sample's prompts and chains end to end, from the start again where it is too short.
    """
    room = loaded.spec.max_positions - HEAD if loaded.spec.n_attention else steps
    count = min(steps, room)
    text = tuple(islice(cycle([t for chain in chains for t in chain.sequence]), HEAD + count))
    coarse = half(loaded)
    kl, same = divergences(loaded, coarse, text, HEAD)
    ratio, last = growth(kl)
    size = max(1, count // POINTS)
    curve = tuple(
        (i + size, float(kl[0, i : i + size].median()), float(kl[1, i : i + size].median()))
        for i in range(0, count - size + 1, size)
    )
    mean = kl[:, -max(1, count // 4) :].mean(1)
    detail = (
        f"{count} steps: median KL to fp32 in the last quarter {last[0]:.2g} nats stepped, {last[1]:.2g} in one pass "
        f"(mean {mean[0]:.2g} and {mean[1]:.2g}); "
        f"top token the same at {100 * same:.1f} % of the steps"
    )
    if count < steps:
        detail += f"; the model has {loaded.spec.max_positions} positions"
    return Check("bf16 drift", "state in fp32", ratio, BOUND, "x", detail), curve


def growth(kl: Tensor) -> tuple[float, Tensor]:
    """How much farther stepping ends up than one pass, from their KL [2, S], and both medians of the last quarter."""
    last = kl[:, -max(1, kl.shape[1] // 4) :].median(1).values.clamp_min(FLOOR)
    return float(last[0] / last[1]) if bool(kl.isfinite().all()) else math.nan, last


def half(loaded: Loaded) -> Loaded:
    """The same model with weights, and so caches, in bf16."""
    return replace(loaded, model=copy.deepcopy(loaded.model).to(torch.bfloat16))


@torch.inference_mode()
def divergences(fine: Loaded, coarse: Loaded, sequence: Sequence[int], cut: int) -> tuple[Tensor, float]:
    """[2, S] KL to ``fine`` in nats at every position from ``cut`` on: of ``coarse`` stepping, and in one pass; and at
    what share of the steps fine and stepped coarse have the same top token.
    """
    count = len(sequence) - cut
    device = fine.model.head_weight.device
    ragged = Ragged(torch.tensor([len(sequence)], device=device))
    whole = coarse.model(torch.tensor(sequence, device=device), ragged)[cut:]
    true_logits = step_logits(fine, [sequence], [cut], count)
    stepped_logits = step_logits(coarse, [sequence], [cut], count)
    kl, same = [], 0
    for (true,), (stepped,), hidden in zip(true_logits, stepped_logits, whole, strict=True):
        others = torch.stack((stepped, coarse.model.logits(hidden).float())).log_softmax(-1)
        p = true.log_softmax(-1)
        kl.append((p.exp() * (p - others)).sum(-1))
        same += int(true.argmax() == stepped.argmax())
    return torch.stack(kl, 1), same / count
