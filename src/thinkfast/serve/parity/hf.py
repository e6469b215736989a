"""Ours against transformers, which computes the same checkpoint from its own code: logits and greedy tokens in fp32.

transformers 5.17 to 5.22 normalise a Mamba layer's gated output over all heads instead of per head. No difference of
versions is trusted here: the norm itself is asked, and a wrong one is refused with the remedy, since a comparison
with it would say nothing about us.

Legend: L tokens of a sequence, V vocabulary.

Usage: ``for check in against_transformers(loaded, folder, chains, 20, Noise(loaded)): ...``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thinkfast.errors import ParityError
from thinkfast.models.loading import Loaded
from thinkfast.models.spec import ModelSpec
from thinkfast.serve.parity.conditioning import Gap, Noise, count_divergences, settle
from thinkfast.serve.parity.report import Check
from thinkfast.serve.parity.sample import LOGITS, LOGPROBS, Divergence, Greedy, divergence, our_logits

NAME = "transformers"
REMEDY = "pip install 'transformers>=5.23'"


def against_transformers(
    loaded: Loaded, folder: Path, chains: Sequence[Greedy], cached: int, noise: Noise
) -> list[Check]:
    """Logits of whole chains, their greedy tokens, and ``cached`` generations through its cache, for ``folder``.

    Errors: ParityError where this transformers cannot be compared with.
    """
    with quiet():
        return list(_compare(loaded, folder, chains, cached, noise))


def _compare(loaded: Loaded, folder: Path, chains: Sequence[Greedy], cached: int, noise: Noise) -> Iterator[Check]:
    import transformers

    if loaded.spec.is_student:
        require_grouped_norm(loaded.spec)
    against = f"{NAME} {transformers.__version__}"
    theirs, info = _load(folder)
    if lost := [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind]]:
        raise ParityError(f"{against} did not use every weight: {lost[0]}", remedy="export the model again")
    theirs.eval()
    spread, gaps, found = 0.0, list[Gap](), list[Divergence | None]()
    for chain in chains:
        other = their_logits(theirs, chain.sequence)
        gaps.append(Gap(chain.sequence, 0, (our_logits(loaded, chain.sequence) - other).abs().amax(-1)))
        spread = max(spread, float(other.abs().max()))
        # Position i says token i + 1; equal argmax along our own chain means, by induction, equal greedy chains.
        found.append(divergence(loaded, chain, other[len(chain.prompt) - 1 : -1].argmax(-1).tolist()))
    bound = LOGPROBS if loaded.spec.is_student else LOGITS
    settled = settle(noise, gaps, bound)
    apart, ties = count_divergences(noise, found, bound)
    new, tokens = len(chains[0].tokens), sum(len(chain.sequence) for chain in chains)
    scale = f"{tokens} positions of {len(chains)} sequences, largest logit {spread:.3g}{settled.said}"
    uncached = f"{len(chains)} prompts x {new} tokens, use_cache=False{ties}"
    yield Check("logits", against, settled.worst, bound, "", scale)
    yield Check("greedy tokens", against, float(apart), 0.0, "prompts", uncached)
    yield _generate(loaded, theirs, against, chains[:cached], noise)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no hints at faster kernels inside: they would run through our table."""
    from transformers.utils import logging

    library: Any = logging  # its functions carry no types
    before = library.get_verbosity()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(before)
        library.enable_progress_bar()


def _load(folder: Path) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    pair: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    return pair[0], pair[1]


def _generate(loaded: Loaded, theirs: Any, against: str, chains: Sequence[Greedy], noise: Noise) -> Check:
    name = "greedy tokens, cached"
    if not loaded.spec.n_attention:
        why = (
            "its cache wants an attention layer; generate with use_cache=False, as the export's generation config says"
        )
        return Check(name, against, None, 0.0, "prompts", why)
    new = len(chains[0].tokens)
    found = []
    for chain in chains:
        prompt = torch.tensor([chain.prompt])
        options = {"max_new_tokens": new, "do_sample": False, "use_cache": True, "eos_token_id": None}
        with torch.inference_mode():
            out = theirs.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), pad_token_id=0, **options)
        found.append(divergence(loaded, chain, out[0, len(chain.prompt) :].tolist()))
    apart, ties = count_divergences(noise, found, LOGITS)
    return Check(name, against, float(apart), 0.0, "prompts", f"{len(chains)} prompts x {new} tokens{ties}")


@torch.inference_mode()
def their_logits(theirs: Any, sequence: Sequence[int]) -> Tensor:
    """[L, V] in fp32, without a cache: a pure student's raises with one."""
    logits: Tensor = theirs(input_ids=torch.tensor([sequence]), use_cache=False).logits[0]
    return logits.float()


def require_grouped_norm(spec: ModelSpec) -> None:
    """Errors: ParityError where the installed transformers does not norm each head of a Mamba layer by itself."""
    import transformers
    from transformers.models.granitemoehybrid.modeling_granitemoehybrid import GraniteMoeHybridMambaLayer

    config = transformers.GraniteMoeHybridConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=8,
        shared_intermediate_size=8,
        num_local_experts=0,
        num_experts_per_tok=0,
        layer_types=["mamba"],
        mamba_n_heads=2,
        mamba_n_groups=2,
        mamba_d_head=4,
        mamba_d_state=4,
        mamba_expand=1,
        rms_norm_eps=spec.norm_eps,
    )
    norm = GraniteMoeHybridMambaLayer(config, layer_idx=0).norm
    # Two heads of very different size: a common norm leaves the first small, a norm per head does not.
    x = torch.tensor([[0.01] * 4 + [1.0] * 4])
    with torch.inference_mode():
        small, large = norm(x).abs().view(2, 4).mean(1).tolist()
    if small < 0.5 * large:
        raise ParityError(
            f"transformers {transformers.__version__} norms all heads of a Mamba layer together, which is wrong; "
            "5.23 is the first to norm each head",
            remedy=REMEDY,
        )
