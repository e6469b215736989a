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

from thinkfast.engine.cache import PAGE, Cache, Fork, PromptHandle, Usage
from thinkfast.engine.native import NativeStep, native_draw, native_library
from thinkfast.engine.pages import Ints, Moves
from thinkfast.engine.plan import MemoryPlan, make_plan
from thinkfast.engine.rows import Rows, RowStart, Said
from thinkfast.engine.sampler import Draw, Mix, RowParams, draw, mix_of
from thinkfast.models.decoder import Decoder
from thinkfast.models.fp8 import is_fp8
from thinkfast.models.ragged import Ragged
from thinkfast.models.room import available_memory


@dataclass(frozen=True, slots=True)
class Start:
    """Rows to fork from one prompt; ``last`` says that no more will follow."""

    prompt: PromptHandle
    rows: tuple[RowStart, ...]
    last: bool


def plan_for(model: Decoder, max_batch: int, max_len: int | None) -> MemoryPlan:
    """The plan for ``model`` where it lies, with room for packed weights where a compiled step can use them.

    Errors: as plan.make_plan.
    """
    weight = model.head_weight
    available, packed = available_memory(weight.device), 4 * model.spec.n_params
    # Packed weights serve speed alone: memory that is short belongs to the batch.
    if available is not None and 2 * packed > available:
        packed = 0
    if is_fp8(model) or native_library(model.spec, PAGE, weight.dtype, weight.device) is None:
        packed = 0
    return make_plan(model.spec, max_batch, max_len, weight.dtype.itemsize, available, packed)


class DecodeStep:
    """One token a row through ``model`` over ``cache``: compiled where the plan has room for it, else by torch."""

    def __init__(self, model: Decoder, cache: Cache, plan: MemoryPlan) -> None:
        self.model, self.cache = model, cache
        weight = model.head_weight
        library = native_library(model.spec, PAGE, weight.dtype, weight.device) if plan.packed_bytes else None
        self.native: NativeStep | None = None
        self.hidden = weight.new_zeros(0, model.spec.d_model)
        if library is not None:
            self.native = NativeStep(library, model, cache.memory, plan.max_len, plan.max_batch)

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens [B], positions [B] to logits [B, V], valid until the next call, as ``hidden`` [B, D] is."""
        if self.native is not None:
            logits = self.native(tokens, positions, self.cache.begin_native())
            self.hidden = self.native.hidden(len(tokens))
            return logits
        self.hidden = self.model.step(tokens, positions, self.cache.begin_step())
        return self.model.logits(self.hidden)

    def draw(self, logits: Tensor, params: RowParams, mix: Mix) -> Draw:
        """sampler.draw from the step's logits."""
        if self.native is not None and mix.truncated is None:
            return native_draw(self.native.library, logits, params)
        return draw(logits, params, mix)


class Runner:
    """Runs ``model`` within the sizes of ``plan``; ``eos_ids`` end a row; ``keep_hidden``: see Chain.hidden."""

    @torch.inference_mode()
    def __init__(self, model: Decoder, plan: MemoryPlan, eos_ids: frozenset[int], keep_hidden: bool = False) -> None:
        self.model, self.plan = model, plan
        weight = model.head_weight
        self.cache = Cache(model.spec, plan.max_batch, plan.max_len, plan.pages, weight.dtype, weight.device)
        eos = torch.zeros(model.spec.vocab_size, dtype=torch.bool, device=weight.device)
        eos[sorted(eos_ids)] = True
        self.rows = Rows(plan.max_batch, plan.max_len, eos, model.spec.d_model if keep_hidden else 0)
        self._keep_hidden = keep_hidden
        self._ends: dict[int, tuple[Tensor, Tensor]] = {}  # of a prompt: hidden state [D] and logits [V]
        self.decode = DecodeStep(model, self.cache, plan)

    def add_stop_table(self, table: Tensor) -> int:
        """Register the tokens [V] bool that may complete a stop string; returns the number for RowStart.stop."""
        return self.rows.add_stop_table(table)

    def prepare(self, filters: bool) -> None:
        """Nothing is captured here."""

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[PromptHandle]:
        """Run n prompts in one packed pass and keep their states and their next-token logits."""
        device = self.model.head_weight.device
        lens = [len(p) for p in prompts]
        ragged = Ragged(torch.tensor(lens, device=device))
        tokens = torch.tensor([t for p in prompts for t in p], device=device)
        hidden, states = self.model.prefill(tokens, ragged)
        logits = self.model.logits(hidden)
        handles = self.cache.store(lens, states)
        for i, handle in enumerate(handles):
            self._ends[handle.id] = hidden[i].clone(), logits[i].clone()
        return handles

    @torch.inference_mode()
    def extend(self, prompt: PromptHandle, tokens: Sequence[int]) -> PromptHandle:
        """Run the next tokens of a prompt whose tokens so far fill whole pages; what it then is."""
        given = torch.tensor(tokens, device=self.model.head_weight.device)
        ragged = Ragged(torch.tensor([len(tokens)], device=given.device))
        hidden, states = self.model.prefill(given, ragged, self.cache.past(prompt))
        self._ends[prompt.id] = hidden[0], self.model.logits(hidden)[0]
        return self.cache.extend(prompt, len(tokens), states)

    def prefilled(self) -> None:
        """``prefill`` ends with its work, so its own time is all there is to know."""

    @torch.inference_mode()
    def fork(self, starts: Sequence[Start]) -> Ints:
        """Add rows behind the present ones and draw their first tokens; returns the new rows' codes.

        A runner that is a step behind returns none here, and these codes with the next step's.
        """
        forks = [Fork(s.prompt, len(s.rows), s.last) for s in starts]
        new = self.cache.fork(forks)
        try:
            self.rows.add([row for s in starts for row in s.rows])
            hidden, logits = (
                torch.cat([self._ends[s.prompt.id][of].expand(len(s.rows), -1) for s in starts]) for of in (0, 1)
            )
            params = self.rows.params(new.start, new.stop)
            drawn = draw(logits, params, mix_of(params))
            codes = _host(self.rows.accept(new.start, new.stop, drawn, hidden if self._keep_hidden else None))
        except BaseException:  # out of memory, or a user who has waited enough: nobody else knows of these rows
            self.rows.remove(new.start, self.cache.release(new))
            raise
        for s in starts:
            if s.last:
                del self._ends[s.prompt.id]
        return codes

    @torch.inference_mode()
    def step(self) -> Ints:
        """One token for every row; returns the rows' codes, the only thing that travels to the host."""
        rows = self.rows
        logits = self.decode(rows.tokens, rows.positions)
        drawn = self.decode.draw(logits, rows.params(0, rows.count), rows.mix())
        return _host(rows.accept(0, rows.count, drawn, self.decode.hidden if self._keep_hidden else None))

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
        """No more forks of this prompt will follow; nothing where that is known."""
        self._ends.pop(prompt.id, None)
        self.cache.close(prompt)

    @property
    def path(self) -> str:
        """What runs a step: "compiled" or "torch"."""
        return "torch" if self.decode.native is None else "compiled"

    @property
    def usage(self) -> Usage:
        """What is held now; all zero when nothing is in flight."""
        return self.cache.usage


def _host(codes: Tensor) -> Ints:
    found: Ints = codes.cpu().numpy().astype(np.int64, copy=False)
    return found
