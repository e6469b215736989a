"""The runner: model, cache and sampler as one machine that prefills, forks and steps.

It knows nothing of queues, deadlines or text. A GPU runner has the same four verbs and replays a captured step.

Legend: T packed prompt tokens, n prompts, B rows.

Usage: ``handles = runner.prefill(prompts); runner.fork([...]); codes = runner.step(); runner.release(rows)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thinkfast.engine.cache import Cache, Fork, PromptHandle, Usage
from thinkfast.engine.fused import FusedStep, fusible
from thinkfast.engine.pages import Ints, Moves
from thinkfast.engine.plan import MemoryPlan
from thinkfast.engine.rows import Rows, RowStart, Said
from thinkfast.engine.sampler import draw, mix_of
from thinkfast.models.decoder import Decoder
from thinkfast.models.ragged import Ragged


@dataclass(frozen=True, slots=True)
class Start:
    """Rows to fork from one prompt; ``last`` says that no more will follow."""

    prompt: PromptHandle
    rows: tuple[RowStart, ...]
    last: bool


class Runner:
    """Runs ``model`` within the sizes of ``plan``; ``eos_ids`` end a row."""

    @torch.inference_mode()
    def __init__(self, model: Decoder, plan: MemoryPlan, eos_ids: frozenset[int]) -> None:
        self.model, self.plan = model, plan
        weight = model.head_weight
        self.cache = Cache(model.spec, plan.max_batch, plan.max_len, plan.pages, weight.dtype, weight.device)
        eos = torch.zeros(model.spec.vocab_size, dtype=torch.bool, device=weight.device)
        eos[sorted(eos_ids)] = True
        self.rows = Rows(plan.max_batch, plan.max_len, eos)
        self._logits: dict[int, Tensor] = {}
        self._fused = FusedStep(model, plan.max_len) if fusible(model) else None

    def add_stop_table(self, table: Tensor) -> int:
        """Register the tokens [V] bool that may complete a stop string; returns the number for RowStart.stop."""
        return self.rows.add_stop_table(table)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[PromptHandle]:
        """Run n prompts in one packed pass and keep their states and their next-token logits."""
        device = self.model.head_weight.device
        lens = [len(p) for p in prompts]
        ragged = Ragged(torch.tensor(lens, device=device))
        tokens = torch.tensor([t for p in prompts for t in p], device=device)
        hidden, states = self.model.prefill(tokens, ragged)
        handles = self.cache.store(lens, states)
        logits = self.model.logits(hidden[ragged.last])
        for i, handle in enumerate(handles):
            self._logits[handle.id] = logits[i].clone()
        return handles

    @torch.inference_mode()
    def fork(self, starts: Sequence[Start]) -> Ints:
        """Add rows behind the present ones and draw their first tokens; returns the new rows' codes.

        A runner that is a step behind returns none here, and these codes with the next step's.
        """
        forks = [Fork(s.prompt, len(s.rows), s.last) for s in starts]
        new = self.cache.fork(forks)
        self.rows.add([row for s in starts for row in s.rows])
        logits = torch.cat([self._logits[s.prompt.id].expand(len(s.rows), -1) for s in starts])
        for s in starts:
            if s.last:
                del self._logits[s.prompt.id]
        params = self.rows.params(new.start, new.stop)
        return _host(self.rows.accept(new.start, new.stop, draw(logits, params, mix_of(params))))

    @torch.inference_mode()
    def step(self) -> Ints:
        """One token for every row; returns the rows' codes, the only thing that travels to the host."""
        rows = self.rows
        caches = self.cache.begin_step()
        if self._fused is not None:
            logits = self._fused(rows.tokens, rows.positions, caches)
        else:
            logits = self.model.logits(self.model.step(rows.tokens, rows.positions, caches))
        drawn = draw(logits, rows.params(0, rows.count), rows.mix())
        return _host(rows.accept(0, rows.count, drawn))

    @torch.inference_mode()
    def said(self, rows: Sequence[int]) -> list[Said]:
        """What ``rows`` have generated so far."""
        return self.rows.said(rows)

    @torch.inference_mode()
    def release(self, rows: Sequence[int]) -> Moves:
        """Take ``rows`` out at once; the answer says which rows have moved into their places."""
        moves = self.cache.release(rows)
        self.rows.remove(self.cache.rows, moves)
        return moves

    @torch.inference_mode()
    def close(self, prompt: PromptHandle) -> None:
        """No more forks of this prompt will follow."""
        del self._logits[prompt.id]
        self.cache.close(prompt)

    @property
    def usage(self) -> Usage:
        """What is held now; all zero when nothing is in flight."""
        return self.cache.usage


def _host(codes: Tensor) -> Ints:
    found: Ints = codes.cpu().numpy().astype(np.int64, copy=False)
    return found
