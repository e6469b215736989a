"""Loss and gradients of one batch, whole or in parts that are added.

Small models leave a core idle between small operations, so two halves of a batch on one core each take about half the
time that the whole takes on both. The sum runs over the parts in their order, whichever is done first.

Usage: ``with Gradients(stage, parameters, parts=2, bf16=False) as gradients: loss = gradients(batch)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from thinkfast.data.corpus import Batch
from thinkfast.distill.stages import Stage


class Gradients:
    """Fills ``grad`` of the parameters; one thread a part on CPUs, parts in turn elsewhere."""

    def __init__(self, stage: Stage, parameters: Sequence[nn.Parameter], *, parts: int, bf16: bool) -> None:
        self.stage, self.parameters, self.parts, self.bf16 = stage, parameters, parts, bf16
        self.device = parameters[0].device
        self._cores = torch.get_num_threads()
        self._threads = min(parts, self._cores) if self.device.type == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self._threads > 1:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="part")
            torch.set_num_threads(max(1, self._cores // self._threads))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self._cores)

    def __call__(self, batch: Batch) -> Tensor:
        """The batch's loss, a scalar; ``grad`` of every parameter is overwritten (None where it has no part in it)."""
        parts = batch.split(self.parts)
        counts = [self.stage.count(part) for part in parts]
        shares = [count / max(1, sum(counts)) for count in counts]
        run = map if self._pool is None else self._pool.map
        total = torch.zeros((), device=self.device)
        for p in self.parameters:
            p.grad = None
        for loss, grads in run(self._part, parts, shares):
            total = total + loss
            for p, grad in zip(self.parameters, grads, strict=True):
                if grad is not None:
                    p.grad = grad if p.grad is None else p.grad.add_(grad)
        return total

    def _part(self, batch: Batch, share: float) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):  # it holds for one thread
            loss = self.stage.loss(batch) * share
        return loss.detach(), torch.autograd.grad(loss, self.parameters, allow_unused=True)
