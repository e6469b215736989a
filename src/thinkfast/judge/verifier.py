"""A verifier on the policy's own hidden states: a small head on what sampling has computed anyway.

Why: a reward model of its own is another model to load, and another tokenizer. The policy has already understood the
chain it wrote; a head of some thousand weights reads from its hidden states how likely the chain is right. An engine
made with ``keep_hidden`` hands them over with the chain, so a score costs one small product; for text alone, as in a
log, one packed pass over question and chain computes them.

Features of a chain: of the hidden states that its tokens were drawn from, the last and the mean; mean and least
log-probability of its tokens; the log of their number. The head is an MLP with one hidden layer, trained by
`report.verify`.

Legend: n chains, T packed tokens, D model width, F features = 2 D + 3.

Usage: ``solve(problem, seconds=5, voter="weighted", scorer=Verifier.load(folder, loaded))``.
Source: Cobbe et al. 2021, "Training verifiers to solve math word problems".
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from thinkfast.engine.request import Chain
from thinkfast.errors import ModelError
from thinkfast.files import atomic_write
from thinkfast.judge.reward import Job
from thinkfast.models.loading import Loaded
from thinkfast.models.ragged import Ragged

FOLDER = "verifier"
HEAD, ABOUT = "head.safetensors", "verifier.json"
FORMAT = 2  # raised when the features change: older heads then have to be trained again
PACKED = 4096  # tokens of one pass


class Head(nn.Module):
    """Standardised features [n, F] to logits [n]."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(features), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(features), requires_grad=False)
        self.first = nn.Linear(features, width)
        self.last = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, F] to [n]."""
        hidden = torch.nn.functional.silu(self.first((x - self.centre) / self.scale))
        return cast(Tensor, self.last(hidden)).squeeze(-1)


@dataclass(frozen=True, slots=True)
class Verifier:
    """A head and the model whose states it reads; a `judge.reward.Scorer`."""

    loaded: Loaded
    head: Head

    @property
    def name(self) -> str:
        return f"the verifier of {self.loaded.name}"

    @classmethod
    def load(cls, folder: Path, loaded: Loaded) -> Verifier:
        """What `save_head` wrote. Errors: ModelError where it is missing, damaged, or was trained on another model."""
        try:
            about = json.loads((folder / ABOUT).read_text())
            tensors = load_file(folder / HEAD)
            sha, name, version = str(about["model_sha"]), str(about["model"]), about.get("format")
            width, features = tensors["first.weight"].shape
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"there is no verifier in {folder}: {error}", remedy="train one with thinkfast train-verifier"
            ) from error
        if version != FORMAT:
            raise ModelError(
                f"the verifier in {folder} reads other features than this version of thinkfast has",
                remedy="train it again with thinkfast train-verifier",
            )
        if sha != loaded.sha:
            raise ModelError(
                f"the verifier in {folder} reads the hidden states of {name!r} ({sha[:12]}), not of {loaded.name!r} "
                f"({loaded.sha[:12]})",
                remedy="train one for this model with thinkfast train-verifier, or solve with the model it belongs to",
            )
        head = Head(features, width)
        head.load_state_dict(tensors)
        return cls(loaded, head.to(loaded.model.head_weight.device).eval().requires_grad_(False))

    def score(self, jobs: Sequence[Job]) -> list[float]:
        """Probability of being right, one a chain."""
        device = self.loaded.model.head_weight.device
        found = [_kept(job.chain) for job in jobs]
        if silent := [job for job, kept in zip(jobs, found, strict=True) if kept is None]:
            encode, end = self.loaded.tokenizer.encode, min(self.loaded.tokenizer.eos_ids, default=None)
            pairs = [(job.prompt, (*encode(job.chain.text), *([] if end is None else [end]))) for job in silent]
            computed = iter(features(self.loaded, pairs))
            found = [next(computed) if kept is None else kept for kept in found]
        rows = torch.stack([row.to(device) for row in found if row is not None])
        with torch.inference_mode():
            return [float(p) for p in self.head(rows).sigmoid()]


def _kept(chain: Chain) -> Tensor | None:
    """Features [F] of what the engine kept; None where it kept nothing."""
    if chain.hidden is None or not chain.tokens:
        return None
    count = len(chain.tokens)
    extra = np.array([chain.logprob / count, chain.least_logprob, math.log(count)], np.float32)
    return torch.from_numpy(np.concatenate((chain.hidden.ravel(), extra)))


def save_head(head: Head, folder: Path, about: dict[str, object]) -> None:
    """Write head and description; ``about`` holds at least "model" and "model_sha". Errors: OutputError."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / HEAD, save({name: p.detach().cpu().contiguous() for name, p in head.state_dict().items()}))
    atomic_write(folder / ABOUT, json.dumps({"format": FORMAT, **about}, indent=1) + "\n")


@torch.inference_mode()
def features(loaded: Loaded, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """[n, F] fp32 of n (prompt, chain) token pairs, in packed passes of about PACKED tokens.

    Errors: ModelError where a chain has no token.
    """
    if any(not chain for _, chain in pairs):
        raise ModelError("a chain without tokens cannot be scored", remedy="leave empty chains out")
    found: list[Tensor] = []
    batch: list[tuple[Sequence[int], Sequence[int]]] = []
    size = 0
    for pair in pairs:
        length = len(pair[0]) + len(pair[1])
        if batch and size + length > PACKED:
            found.append(_pass(loaded, batch))
            batch, size = [], 0
        batch.append(pair)
        size += length
    return torch.cat([*found, _pass(loaded, batch)])


def _pass(loaded: Loaded, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    model = loaded.model
    device = model.head_weight.device
    lens = torch.tensor([len(prompt) + len(chain) for prompt, chain in pairs], device=device)
    tokens = torch.tensor([t for prompt, chain in pairs for t in (*prompt, *chain)], device=device)
    ragged = Ragged(lens)
    hidden = model(tokens, ragged)  # [T, D]
    starts = (lens.cumsum(0) - lens).tolist()
    rows = []
    for start, (prompt, chain) in zip(starts, pairs, strict=True):
        first, last = start + len(prompt), start + len(prompt) + len(chain)
        # The state before a token is what it is drawn from.
        before = hidden[first - 1 : last - 1]
        mine, logprobs = before.float(), model.logits(before).float().log_softmax(-1)
        said = logprobs.gather(1, tokens[first:last, None]).squeeze(1)
        extra = torch.stack([said.mean(), said.min(), torch.log(torch.tensor(float(len(chain)), device=device))])
        rows.append(torch.cat([mine[-1], mine.mean(0), extra]))
    return torch.stack(rows)
