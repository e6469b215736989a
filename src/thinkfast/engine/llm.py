"""LLM: the engine's public face. Prompts in, chains of thought out, within a number of seconds.

Usage: ``LLM("tiny").generate(["Tom has 3 apples …"], SamplingParams(n=64, temperature=0.8), seconds=5)``; both names
are thinkfast's own, and docs/engine.md goes on from there.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from thinkfast.engine.cache import PAGE
from thinkfast.engine.plan import MemoryPlan
from thinkfast.engine.request import Chain, Request, SamplingParams
from thinkfast.engine.runners import fitted, make_runner, plan_for
from thinkfast.engine.scheduler import Limits, Scheduler
from thinkfast.engine.session import Codec, Session, Stats
from thinkfast.engine.stops import stop_table
from thinkfast.errors import InputError
from thinkfast.models.fp8 import in_fp8
from thinkfast.models.loading import Loaded, load_model
from thinkfast.models.room import refusing
from thinkfast.typed import real, whole


def _planned(plan: MemoryPlan) -> AbstractContextManager[None]:
    """Errors: CapacityError with the plan where memory runs out all the same."""
    return refusing(
        f"memory ran out, though the plan had room: {plan}",
        "see whether another program has come to the device, or pass a smaller max_batch or max_len",
    )


class LLM:
    """One model with its caches, ready to generate.

    Arguments:
        model: a name or folder as for ``load_model``, or a Loaded, whose dtype and device then hold.
        max_batch: most chains decoded together.
        max_len: most tokens of a chain, its prompt included; None for the model's own limit.
        dtype: of weights and caches.
        device: where to run.
        state_dtype: of SSM states on a GPU: fp32, bf16 or float8_e4m3fn; None for that of the weights. A CPU keeps
            them in fp32.
        fp8_weights: the blocks' projections in eight bits (models/fp8.py), for teacher and student alike: half the
            bytes and twice the rate of a GPU's products. Answers change a little; on a CPU it only costs time.
        keep_hidden: chains carry their hidden states (Chain.hidden), which a verifier reads for nothing.
        prefill_tokens: most prompt tokens between two steps; None for as many as the plan has room for, which are 8,192
            on a GPU and 1,024 on a CPU. A longer prompt is prefilled in pieces of whole pages, 64 tokens at least. With
            fewer the chains that run wait for less at a time, and all together for more.
        on_plan: sees the memory plan before anything is allocated.

    Errors: ModelError, InputError, and CapacityError with the memory plan where it does not fit, or memory runs out all
    the same; what was in flight is freed then.
    """

    def __init__(
        self,
        model: str | Path | Loaded,
        max_batch: int = 64,
        max_len: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        state_dtype: torch.dtype | None = None,
        keep_hidden: bool = False,
        fp8_weights: bool = False,
        prefill_tokens: int | None = None,
        on_plan: Callable[[MemoryPlan], None] | None = None,
    ) -> None:
        loaded = model if isinstance(model, Loaded) else load_model(model, dtype, device)
        if fp8_weights:
            loaded = replace(loaded, model=in_fp8(loaded.model))
        loaded = fitted(loaded)
        self.loaded, self.spec, self.tokenizer = loaded, loaded.spec, loaded.tokenizer
        plan = self.plan = plan_for(loaded.model, max_batch, max_len, state_dtype)
        between = plan.prefill_tokens if prefill_tokens is None else whole("prefill_tokens", prefill_tokens)
        if not 0 < between <= plan.prefill_tokens:
            raise InputError(f"prefill_tokens is {between}", remedy=f"pass 1 to {plan.prefill_tokens}")
        if on_plan is not None:
            on_plan(plan)
        self.stats = Stats()
        with _planned(plan):
            self._runner = make_runner(loaded.model, plan, self.tokenizer.eos_ids, keep_hidden)
        # A prefill of one prompt costs at least a decode step of the whole batch, and one of several little more: with
        # chains of L tokens, waiting for B * sqrt(2 / L) free rows costs least, a twelfth at L = 300.
        together = max(1, max_batch // 12)
        pages = plan.admissible_pages
        self._limits = Limits(max_batch, plan.max_len, pages, PAGE, between, plan.prompts, together)
        self._stops: dict[tuple[str, ...], int] = {(): 0}
        self._pieces: list[str] | None = None
        self._session: Session | None = None

    def prepare(self, params: SamplingParams) -> None:
        """Do what the first steps of chains like these would have to, before a clock starts: on a GPU compile, measure
        and capture steps of all batch sizes. It takes seconds, the first time on a machine more; on a CPU nothing.

        Errors: CapacityError where memory runs out.
        """
        with _planned(self.plan):
            self._stop(params.stop)
            self._runner.prepare(params.truncated)

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams,
        seconds: float | None = None,
        on_chain: Callable[[Chain], None] | None = None,
    ) -> list[list[Chain]]:
        """``params.n`` chains of every prompt, by sample index; text goes through the chat template first.

        Request ids are "0", "1", ... With ``seconds``, chains that still run at the deadline come back as they are
        (finish "deadline") and samples that never started are missing. ``on_chain`` sees each chain as it finishes.

        Errors: InputError for an empty or over-long prompt or a bad budget; CapacityError where one cannot fit.
        """
        if isinstance(prompts, str):
            raise InputError("prompts is one text", remedy="pass a list, of a single one too: generate([prompt])")
        requests = [Request(str(i), self._prompt(i, p), params) for i, p in enumerate(prompts)]
        chains: list[list[Chain]] = [[] for _ in requests]
        for chain in self.stream(requests, seconds):
            chains[int(chain.request)].append(chain)
            if on_chain is not None:
                on_chain(chain)
        return [sorted(found, key=lambda chain: chain.index) for found in chains]

    def stream(
        self, requests: Iterable[Request | None], seconds: float | None = None, *, fair: bool = False
    ) -> Iterator[Chain]:
        """Chains in the order in which they finish; requests are drawn from the iterable as room appears.

        A None in the place of a request says "nothing yet": the engine makes a step and asks again, so that what to
        begin may depend on what has finished. ``fair``: free rows go to the request that has begun the fewest samples,
        not to the one that came first. The clock starts now, not at the first ``next``. Closing the iterator frees
        everything that still runs.

        Errors: as ``generate``; also InputError where another stream of this LLM is still open.
        """
        started = time.monotonic()
        if seconds is not None and not real("seconds", seconds) > 0:
            raise InputError(f"seconds is {seconds}, a budget must be positive", remedy="pass seconds=5, or None")
        ready: Iterator[Request | None] = (None if r is None else self._check(r) for r in requests)
        if isinstance(requests, Sequence):
            checker = Scheduler(self._limits)
            for request in ready:
                if request is not None:
                    checker.submit(request)
            ready = iter(requests)
        deadline = math.inf if seconds is None else started + seconds
        return self._stream(ready, started, deadline, fair)

    def _stream(
        self, requests: Iterator[Request | None], started: float, deadline: float, fair: bool
    ) -> Iterator[Chain]:
        if self._session is not None:
            raise InputError(
                "this LLM already has an open stream", remedy="finish or close it first, or make another LLM"
            )
        codec = Codec(self.tokenizer.decode_batch, self.tokenizer.eos_ids, self._stop)
        self._session = Session(self._runner, codec, self._limits, self.stats, started, deadline, fair)
        try:
            with _planned(self.plan):
                yield from self._session.run(requests)
        finally:
            self._session = None

    @property
    def running(self) -> int:
        """Rows of the open stream that are in flight or whose prompt is being prefilled; 0 without one."""
        return 0 if self._session is None else self._session.running

    @property
    def room(self) -> int:
        """Rows of the open stream that neither run nor are spoken for; all of them without one."""
        return self._limits.max_batch if self._session is None else self._session.room

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """End a request of the open stream, or only its sample ``index``, before the next step.

        Running chains come back with finish "cancelled", samples that never started are missing. Unknown ids, and a
        sample that does not run, are ignored. May be called from another thread.
        """
        if (session := self._session) is not None:
            session.cancel(request_id, index)

    @property
    def step_path(self) -> str:
        """What runs a decode step: "captured" (kernels.triton), "compiled" (kernels.cpu) or "torch"."""
        return self._runner.path

    def _check(self, request: Request) -> Request:
        if not isinstance(cast(object, request), Request):
            raise InputError(
                f"{request!r} is no Request",
                remedy="pass Request(id, tokens, params); generate takes texts, and tokenizer.chat(text) makes tokens",
            )
        size, prompt = self.spec.vocab_size, request.prompt
        if prompt and (min(prompt) < 0 or max(prompt) >= size):
            bad = next(token for token in prompt if not 0 <= token < size)
            raise InputError(
                f"token {bad} in the prompt of {request.id!r} is outside the vocabulary of {size}",
                remedy="encode the prompt with this model's tokenizer",
            )
        return request

    def _prompt(self, number: int, prompt: str | Sequence[int]) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            try:
                return tuple(map(operator.index, prompt))
            except TypeError:
                what = f"prompt {number} is {prompt!r}"[:200]
                raise InputError(what, remedy="pass a text, or a list of token numbers") from None
        if not prompt.strip():
            raise InputError(f"prompt {number} is empty", remedy="give a problem to solve")
        return tuple(self.tokenizer.chat(prompt))

    def _stop(self, stop: tuple[str, ...]) -> int:
        """The row table number for some stop strings, made on first use."""
        if stop not in self._stops:
            if self._pieces is None:
                self._pieces = self.tokenizer.decode_batch([[token] for token in range(self.tokenizer.vocab_size)])
            table = stop_table(self._pieces, stop, self.spec.vocab_size)
            self._stops[stop] = self._runner.add_stop_table(table)
        return self._stops[stop]
