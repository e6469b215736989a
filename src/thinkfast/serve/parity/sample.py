"""What every comparison is made on: some prompts, our greedy chains for them, and our logits of any sequence.

Legend: L tokens of one sequence, V vocabulary.

Usage: ``sample = draw_sample(loaded, prompts, new=64); our_logits(loaded, sample.chains[0].sequence)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinkfast.engine.llm import LLM
from thinkfast.engine.request import SamplingParams
from thinkfast.models.loading import Loaded
from thinkfast.models.precision import at_least_fp32
from thinkfast.models.ragged import Ragged

LOGITS = 2e-4
"""Most that two fp32 programs, or two forms of ours, may differ in a logit."""
LOGPROBS = 1e-3
"""Most that another program may differ from us on a student, whose recurrence every program sums in its own order."""


@dataclass(frozen=True, slots=True)
class Greedy:
    """A prompt and the tokens that our engine generates for it greedily, the end-of-sequence token not minded."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def sequence(self) -> tuple[int, ...]:
        """Prompt and tokens."""
        return self.prompt + self.tokens


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where another program's greedy tokens leave ours: the token's number, the tokens before it, prompt included, and
    by how much our logit of our token exceeds that of theirs.
    """

    at: int
    before: tuple[int, ...]
    margin: float


def draw_sample(loaded: Loaded, prompts: Sequence[Sequence[int]], new: int) -> list[Greedy]:
    """Our greedy chains of ``new`` tokens, from one batch in the engine."""
    longest = max(len(prompt) for prompt in prompts) + new
    llm = LLM(loaded, max_batch=len(prompts), max_len=longest)
    params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
    chains = llm.generate(prompts, params)
    return [Greedy(tuple(p), c[0].tokens) for p, c in zip(prompts, chains, strict=True)]


@torch.inference_mode()
def our_logits(loaded: Loaded, sequence: Sequence[int]) -> Tensor:
    """[L, V] in at least fp32, by one parallel pass."""
    device = loaded.model.head_weight.device
    tokens = torch.tensor(sequence, device=device)
    return at_least_fp32(
        loaded.model.logits(loaded.model(tokens, Ragged(torch.tensor([len(sequence)], device=device))))
    )


def our_logprobs(loaded: Loaded, sequence: Sequence[int]) -> Tensor:
    """[L - 1] log-probability of each token but the first, given those before it."""
    logits = our_logits(loaded, sequence)[:-1]
    following = torch.tensor(sequence[1:], device=logits.device)
    return logits.log_softmax(-1).gather(1, following[:, None]).squeeze(1).cpu()


def divergence(loaded: Loaded, chain: Greedy, theirs: Sequence[int]) -> Divergence | None:
    """Where ``theirs`` leaves our greedy tokens; None where it does not."""
    for i, (ours, other) in enumerate(zip(chain.tokens, theirs, strict=True)):
        if ours != other:
            before = chain.prompt + chain.tokens[:i]
            logits = our_logits(loaded, before)[-1]
            return Divergence(i, before, float(logits[ours] - logits[other]))
    return None
