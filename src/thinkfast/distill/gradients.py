"""Loss and gradients of one batch, whole or in parts that are added.

Small models leave a core idle between small operations, so two halves of a batch on one core each take about half the
time that the whole takes on both. The sum runs over the parts in their order, whichever is done first. Several
trainings may share one set of threads: the parts of one fill the cores while another waits for its slowest part.

Usage: ``with Gradients(stage, parameters, parts=2, bf16=False) as gradients: loss = gradients(batch)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from thinkfast.data.corpus import Batch
from thinkfast.distill.stages import Stage


@contextmanager
def part_threads(cores: int) -> Iterator[Executor]:
    """``cores`` threads that parts run on, each on one core: torch's own threads rest as long as this is open."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(cores, thread_name_prefix="part")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


class Gradients:
    """Fills ``grad`` of the parameters; parts run on ``threads``, by default their own, and in turn on a GPU."""

    def __init__(
        self,
        stage: Stage,
        parameters: Sequence[nn.Parameter],
        *,
        parts: int,
        bf16: bool,
        threads: Executor | None = None,
    ) -> None:
        self.stage, self.parameters, self.parts, self.bf16 = stage, parameters, parts, bf16
        self.device = parameters[0].device
        self._threads = threads if self.device.type == "cpu" else None
        cores = min(parts, torch.get_num_threads())
        self._own = part_threads(cores) if self.device.type == "cpu" and threads is None and cores > 1 else None

    def __enter__(self) -> Self:
        if self._own is not None:
            self._threads = self._own.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._own is not None:
            self._own.__exit__(None, None, None)

    def __call__(self, batch: Batch) -> Tensor:
        """The batch's loss, a scalar; ``grad`` of every parameter is overwritten (None where it has no part in it)."""
        parts = batch.split(self.parts)
        counts = [self.stage.count(part) for part in parts]
        shares = [count / max(1, sum(counts)) for count in counts]
        run = map if self._threads is None else self._threads.map
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
