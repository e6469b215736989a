"""Our forms against each other: step by step, packed, forked, batched; on logits or on whole chains, in fp32 and, where
rounding is to have no say, in fp64.

Legend: L tokens of a sequence, S steps, n sequences, V vocabulary.

Usage: ``for check in (prefill_against_step, one_against_ragged): check(loaded, chains, Noise(loaded))``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from thinkfast.engine.cache import Cache, Fork
from thinkfast.engine.llm import LLM
from thinkfast.engine.request import Chain, Request, SamplingParams
from thinkfast.engine.rng import sample_key
from thinkfast.engine.runner import DecodeStep, plan_for
from thinkfast.models.loading import Loaded
from thinkfast.models.precision import at_least_fp32
from thinkfast.models.ragged import Ragged
from thinkfast.serve.parity.chance import Parting, count_partings
from thinkfast.serve.parity.conditioning import Gap, Noise, settle
from thinkfast.serve.parity.report import Check
from thinkfast.serve.parity.sample import LOGITS, Greedy, our_logits

SAMPLES = 8
TEMPERATURE = 0.8
FINE = 1e-9
"""For fp64: its rounding is 2^29 times finer than fp32's, so this allows for models that fp32 decides to one digit."""


def prefill_against_step(loaded: Loaded, chains: Sequence[Greedy], noise: Noise) -> Check:
    """Prefill of the first tokens, then one step a token, against one parallel pass, on every stepped position."""
    return _rounded("prefill, then step", "one parallel pass", _stepped(loaded, chains), noise)


def fine_prefill_against_step(loaded: Loaded, chains: Sequence[Greedy]) -> Check:
    """The same in fp64, where nothing is put down to rounding: what is left is the formulas."""
    return _exact("prefill, then step, fp64", "one parallel pass", _stepped(_in_fp64(loaded), chains))


def _in_fp64(loaded: Loaded) -> Loaded:
    return replace(loaded, model=copy.deepcopy(loaded.model).double())


def _rounded(name: str, against: str, found: tuple[list[Gap], str], noise: Noise) -> Check:
    gaps, detail = found
    settled = settle(noise, gaps, LOGITS)
    return Check(name, against, settled.worst, LOGITS, "", detail + settled.said)


def _exact(name: str, against: str, found: tuple[list[Gap], str]) -> Check:
    gaps, detail = found
    return Check(name, against, max(float(gap.sizes.max()) for gap in gaps), FINE, "", detail)


def _stepped(loaded: Loaded, chains: Sequence[Greedy]) -> tuple[list[Gap], str]:
    """Prompts cut to 1, 2, and around the convolution's width are where a state handed over wrongly shows."""
    width = loaded.spec.d_conv
    cuts = [len(chain.prompt) for chain in chains]
    for i, cut in enumerate((1, 2, width - 1, width, width + 1)):
        cuts[i % len(cuts)] = min(cut, len(chains[i % len(cuts)].sequence) - 1)
    sequences = [chain.sequence for chain in chains]
    steps = min(len(s) - cut for s, cut in zip(sequences, cuts, strict=True))
    whole = [our_logits(loaded, s[: cut + steps])[cut:] for s, cut in zip(sequences, cuts, strict=True)]
    rows = [
        (logits - torch.stack([each[i] for each in whole])).abs().amax(-1)
        for i, logits in enumerate(step_logits(loaded, sequences, cuts, steps))
    ]
    sizes = torch.stack(rows, 1)
    gaps = [Gap(s, cut, row) for s, cut, row in zip(sequences, cuts, sizes, strict=True)]
    return gaps, f"{len(cuts)} sequences, prefilled {min(cuts)} to {max(cuts)} tokens, then {steps} steps"


@torch.inference_mode()
def step_logits(
    loaded: Loaded, sequences: Sequence[Sequence[int]], cuts: Sequence[int], steps: int
) -> Iterator[Tensor]:
    """``steps`` times logits [n, V], in at least fp32, of the tokens after each sequence's ``cut``, one at a time."""
    model, device = loaded.model, loaded.model.head_weight.device
    plan = plan_for(model, len(cuts), max(cuts) + steps)
    cache = Cache(loaded.spec, plan.max_batch, plan.max_len, plan.pages, model.head_weight.dtype, device)
    ragged = Ragged(torch.tensor(list(cuts), device=device))
    heads = [t for s, cut in zip(sequences, cuts, strict=True) for t in s[:cut]]
    _, states = model.prefill(torch.tensor(heads, device=device), ragged)
    cache.fork([Fork(handle, 1, last=True) for handle in cache.store(list(cuts), states)])
    tokens = torch.tensor([s[cut : cut + steps] for s, cut in zip(sequences, cuts, strict=True)], device=device)
    positions = torch.tensor(list(cuts), device=device)
    step = DecodeStep(model, cache, plan)
    for i in range(steps):
        yield at_least_fp32(step(tokens[:, i].contiguous(), positions + i)).clone()


def one_against_ragged(loaded: Loaded, chains: Sequence[Greedy], noise: Noise) -> Check:
    """Every prompt alone against all of them packed into one pass, on every position."""
    return _rounded("batch of one", "ragged batch", _packed(loaded, chains), noise)


def fine_one_against_ragged(loaded: Loaded, chains: Sequence[Greedy]) -> Check:
    """The same in fp64."""
    return _exact("batch of one, fp64", "ragged batch", _packed(_in_fp64(loaded), chains))


@torch.inference_mode()
def _packed(loaded: Loaded, chains: Sequence[Greedy]) -> tuple[list[Gap], str]:
    device = loaded.model.head_weight.device
    prompts = [chain.prompt for chain in chains]
    lens = [len(prompt) for prompt in prompts]
    ragged = Ragged(torch.tensor(lens, device=device))
    packed = loaded.model(torch.tensor([t for p in prompts for t in p], device=device), ragged)
    gaps = []
    for prompt, hidden in zip(prompts, packed.split(lens), strict=True):
        difference = at_least_fp32(loaded.model.logits(hidden)) - our_logits(loaded, prompt)
        gaps.append(Gap(prompt, 0, difference.abs().amax(-1)))
    return gaps, f"{len(prompts)} prompts of {min(lens)} to {max(lens)} tokens"


def alone_against_together(loaded: Loaded, chains: Sequence[Greedy], new: int, noise: Noise) -> Check:
    """Sampled chains of requests that run one after the other against the same requests in one batch."""
    prompts = [chain.prompt for chain in chains]
    params = SamplingParams(n=2, temperature=TEMPERATURE, max_tokens=new, seed=7)
    requests = [Request(str(i), prompt, params) for i, prompt in enumerate(prompts)]
    llm = LLM(loaded, max_batch=2 * len(prompts), max_len=max(map(len, prompts)) + new)
    together = {(c.request, c.index): c.tokens for c in llm.stream(requests)}
    alone = [chain for request in requests for chain in llm.stream([request])]
    differing, said = _differing(noise, prompts, together, alone, params)
    detail = f"{len(together)} sampled chains of up to {new} tokens{said}"
    return Check("requests one by one", "the same in one batch", float(differing), 0.0, "chains", detail)


def fork_against_independent(loaded: Loaded, chains: Sequence[Greedy], new: int, noise: Noise) -> Check:
    """Samples forked from one prefill against as many prefills of the same prompt, under the same seeds."""
    prompts = [chain.prompt for chain in chains]
    llm = LLM(loaded, max_batch=SAMPLES * len(prompts), max_len=max(map(len, prompts)) + new)

    params = SamplingParams(n=SAMPLES, temperature=TEMPERATURE, max_tokens=new, seed=11)

    def request(i: int, count: int, first: int) -> Request:
        return Request(str(i), prompts[i], replace(params, n=count), first_index=first)

    numbers = range(len(prompts))
    forked = {(c.request, c.index): c.tokens for c in llm.stream([request(i, SAMPLES, 0) for i in numbers])}
    single: list[Chain] = []
    for first in range(SAMPLES):
        single += llm.stream([request(i, 1, first) for i in numbers])
    differing, said = _differing(noise, prompts, forked, single, params)
    detail = f"{SAMPLES} samples of each of {len(prompts)} prompts, up to {new} tokens{said}"
    return Check("fork of one prefill", "independent prefills", float(differing), 0.0, "chains", detail)


def _differing(
    noise: Noise,
    prompts: Sequence[tuple[int, ...]],
    ours: Mapping[tuple[str, int], tuple[int, ...]],
    others: Sequence[Chain],
    params: SamplingParams,
) -> tuple[int, str]:
    """How many of ``others`` are not the chain of the same request and index, rounding allowed for, and a remark."""
    pairs = [
        Parting(
            prompts[int(c.request)], sample_key(params.seed, c.request, c.index), ours[c.request, c.index], c.tokens
        )
        for c in others
    ]
    return count_partings(noise, pairs, params.temperature)
