"""What is asked of the engine and what comes back: SamplingParams, Request, Chain.

These frozen values are the engine's only public nouns, so a log, a server and a vote share them.

Usage: ``Request("gsm8k-7", prompt=(1, 5, 9), params=SamplingParams(n=64, temperature=0.8, seed=1))``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from thinkfast.errors import InputError
from thinkfast.typed import real, whole

Finish = Literal["stop", "length", "deadline", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample: filters apply in the order temperature, top_k, top_p, min_p.

    n: samples per prompt. temperature: 0 is greedy, and so is top_k = 1 at any temperature. top_p: keep the
    smallest set of tokens whose probability reaches it. top_k: keep that many tokens, 0 for all. min_p: keep tokens
    at least that share as likely as the likeliest. max_tokens: new tokens a chain may have. stop: strings that end a
    chain. logprobs: also return each token's log-probability, which is always that of the model at temperature 1,
    before any filter. ignore_eos: never stop at the end-of-sequence token (for benchmarks of forced length).
    detokenize: turn chains into text; without it their text is empty.

    Errors: InputError where a value is no number or out of range, or strings should end a chain that has no text.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs: bool = False
    ignore_eos: bool = False
    detokenize: bool = True

    def __post_init__(self) -> None:
        for name in ("n", "top_k", "max_tokens", "seed"):
            whole(name, getattr(self, name))
        for name in ("temperature", "top_p", "min_p"):
            real(name, getattr(self, name))
        if self.n <= 0:
            raise InputError(f"n is {self.n}, there must be at least one sample", remedy="pass n=1 or more")
        if self.max_tokens <= 0:
            raise InputError(f"max_tokens is {self.max_tokens}", remedy="pass max_tokens=1 or more")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature is {self.temperature}", remedy="pass 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}", remedy="pass a number above 0 and at most 1 (1 is off)")
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}", remedy="pass 0 (off) or a positive number")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min_p is {self.min_p}", remedy="pass a number from 0 (off) to 1")
        if isinstance(cast(object, self.stop), str) or not all(self.stop):
            raise InputError(f"stop is {self.stop!r}", remedy='pass a tuple of non-empty strings, as stop=("\\n\\n",)')
        if self.stop and not self.detokenize:
            raise InputError("stop strings are looked for in the text", remedy="leave detokenize=False out, or stop")

    @property
    def greedy(self) -> bool:
        """Whether every token is the likeliest one."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def truncated(self) -> bool:
        """Whether a filter may remove tokens, which costs a sort a step."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


@dataclass(frozen=True, slots=True)
class Request:
    """``params.n`` samples of one prompt; they carry the indices first_index .. first_index + n - 1.

    The token at (params.seed, name, sample index, position) depends on those and the logits alone, so the samples of a
    request can be drawn in several calls, or on several machines, and stay the same. name: the id where it is empty;
    requests for other samples of the same prompt run side by side under ids of their own and one name.

    keep: others of this name and prompt may follow; the prompt stays prefilled for them until its place is needed.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    first_index: int = 0
    name: str = ""
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """One finished sample.

    tokens: as sampled, the end-of-sequence token included. text: decoded, without special tokens and cut before a
    stop string. logprob: sum over the tokens, under the model at temperature 1. finish: "stop" (end of sequence or a
    stop string), "length", "deadline", "cancelled", or "error" (the model's logits were not finite). seconds: since
    the run began, prefill and queueing included. certainty: mean over the tokens of KL(uniform, model) in nats, how far
    the model was from knowing nothing (arXiv 2502.18581); None where the runner does not keep it. least_logprob: of its
    tokens. hidden [2, D]: of the model's last hidden states, each the one that a token was drawn from, the newest and
    the mean; None unless the LLM was made with ``keep_hidden``, and on a GPU.
    """

    request: str
    index: int
    tokens: tuple[int, ...]
    text: str
    logprob: float
    logprobs: tuple[float, ...] | None
    finish: Finish
    seconds: float
    prompt_tokens: int
    certainty: float | None = None
    least_logprob: float = math.nan
    hidden: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
