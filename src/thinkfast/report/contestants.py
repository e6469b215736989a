"""Engines under one seam for the bench: the same prompts in, chains of forced length out, and where the time went.

A contestant is one model in one engine. Another engine joins by a class with `system`, `engine` and `run`.

Usage: ``Ours("tiny", loaded, batch=64, longest=320).run(prompts, new=256).tokens_per_second``.
"""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, Protocol

import torch
from torch import Tensor

from thinkfast.engine.llm import LLM
from thinkfast.engine.request import SamplingParams
from thinkfast.errors import ModelError
from thinkfast.models.loading import Loaded
from thinkfast.models.spec import ModelSpec
from thinkfast.report.probe import synchronize

# Before, transformers computes a hybrid's gated norm without groups (FACTS.md, section 3).
HYBRIDS_SINCE = (5, 23)

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Timing:
    """One run. seconds: from the prompts to the last chain's end. prefill_seconds and decode_seconds: what of it the
    engine spent on prompts and in ``steps`` decode steps. tokens: generated, over all chains. cpu_seconds: processor
    time of all threads of this process, which a busy neighbour disturbs less than the clock on the wall.
    """

    seconds: float
    cpu_seconds: float
    prefill_seconds: float
    decode_seconds: float
    steps: int
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over all seconds, prefill included."""
        return self.tokens / self.seconds

    @property
    def ms_per_step(self) -> float:
        """Milliseconds of a decode step; 0 where there was none."""
        return 1e3 * self.decode_seconds / self.steps if self.steps else 0.0


class _Clock:
    """Wall and processor time since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


class Contestant(Protocol):
    """One model in one engine, ready to run."""

    @property
    def system(self) -> str:
        """The model's name in the tables."""
        ...

    @property
    def engine(self) -> str:
        """The engine's name."""
        ...

    def run(self, prompts: Prompts, new: int, samples: int = 1) -> Timing:
        """``samples`` chains of exactly ``new`` tokens for every prompt, at temperature 1 without filters."""
        ...


class Ours:
    """Our engine, through its public face; a run's seconds include decoding the chains to text."""

    engine = "thinkfast"

    def __init__(
        self, system: str, loaded: Loaded, batch: int, longest: int, state_dtype: torch.dtype | None = None
    ) -> None:
        self.system = system
        self.llm = LLM(loaded, max_batch=batch, max_len=longest, state_dtype=state_dtype)

    @property
    def plan_bytes(self) -> int:
        """What the memory plan allows for weights, caches and workspace."""
        return self.llm.plan.weight_bytes + self.llm.plan.needed_bytes

    def run(self, prompts: Prompts, new: int, samples: int = 1) -> Timing:
        """See Contestant. Errors: ModelError where a chain ended early, which only broken weights can do."""
        stats = self.llm.stats
        before = replace(stats)
        clock = _Clock()
        self.llm.generate(prompts, SamplingParams(n=samples, max_tokens=new, ignore_eos=True, detokenize=False))
        seconds, cpu_seconds = clock.read()
        tokens = stats.generated_tokens - before.generated_tokens
        _require_length(self.system, tokens, len(prompts) * samples * new)
        return Timing(
            seconds,
            cpu_seconds,
            stats.prefill_seconds - before.prefill_seconds,
            stats.decode_seconds - before.decode_seconds,
            stats.steps - before.steps,
            tokens,
        )


def why_not_transformers(spec: ModelSpec) -> str | None:
    """Why transformers' `generate` cannot run this model here; None where it can."""
    if not spec.is_student:
        return None
    if not spec.n_attention:
        return "its cached generate raises without an attention layer"
    version = metadata.version("transformers")
    if tuple(int(part) for part in version.split(".")[:2]) < HYBRIDS_SINCE:
        return f"{version} computes the gated norm without groups, {'.'.join(map(str, HYBRIDS_SINCE))} is right"
    return None


class _FirstLogits:
    """A logits processor that only notes when the first logits were there: the end of the prefill."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.at: float | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.at is None:
            synchronize(self._device)
            self.at = time.perf_counter()
        return scores


class Transformers:
    """`generate` of transformers on the same checkpoint folder, as it comes: dynamic cache, its default attention."""

    engine = "transformers"

    def __init__(self, system: str, loaded: Loaded) -> None:
        self._library: Any = importlib.import_module("transformers")
        self.system = system
        weight = loaded.model.head_weight
        self._device = weight.device
        with _quiet():
            auto = self._library.AutoModelForCausalLM
            model = auto.from_pretrained(loaded.path, dtype=weight.dtype, local_files_only=True)
            self._model = model.to(weight.device).eval()
        self._eos = sorted(loaded.tokenizer.eos_ids)

    def run(self, prompts: Prompts, new: int, samples: int = 1) -> Timing:
        """See Contestant; all prompts must be of one length."""
        ids = torch.tensor(prompts, device=self._device)
        config = self._library.GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=new,
            max_new_tokens=new,
            num_return_sequences=samples,
            eos_token_id=self._eos or None,
            pad_token_id=self._eos[0] if self._eos else 0,
        )
        first = _FirstLogits(self._device)
        with _quiet(), torch.inference_mode():
            synchronize(self._device)
            clock = _Clock()
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                logits_processor=self._library.LogitsProcessorList([first]),
            )
            synchronize(self._device)
            seconds, cpu_seconds = clock.read()
        tokens = (out.shape[1] - ids.shape[1]) * out.shape[0]
        _require_length(self.system, tokens, len(prompts) * samples * new)
        prefill = 0.0 if first.at is None else first.at - clock.wall
        return Timing(seconds, cpu_seconds, prefill, seconds - prefill, new - 1, tokens)


def _require_length(system: str, tokens: int, wanted: int) -> None:
    if tokens != wanted:
        raise ModelError(
            f"{system} generated {tokens} tokens where {wanted} were forced: its logits are not finite",
            remedy="check the weights, or bench in fp32",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, hints or progress bars of transformers inside; settings as they were afterwards."""
    logging: Any = importlib.import_module("transformers.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
