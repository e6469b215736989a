"""A verifier on the policy's own hidden states: one packed pass over question and chain, and a small head on top.

Why: a reward model of its own is another model to load, and another tokenizer. The policy has already understood the
chain it wrote; a head of some thousand weights reads from its hidden states how likely the chain is right, and a packed
pass over finished text costs a fraction of having sampled it.

Features of a chain: the hidden state after its last token, the mean over its tokens, mean and least log-probability of
its tokens, and the log of their number. The head is an MLP with one hidden layer, trained by `report.verify`.

Legend: n chains, T packed tokens, D model width, F features = 2 D + 3.

Usage: ``solve(problem, seconds=5, voter="weighted", scorer=Verifier.load(folder, loaded))``.
Source: Cobbe et al. 2021, "Training verifiers to solve math word problems".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from thinkfast.errors import ModelError
from thinkfast.files import atomic_write
from thinkfast.judge.reward import Job
from thinkfast.models.loading import Loaded
from thinkfast.models.ragged import Ragged

FOLDER = "verifier"
HEAD, ABOUT = "head.safetensors", "verifier.json"
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
            sha, name = str(about["model_sha"]), str(about["model"])
            width, features = tensors["first.weight"].shape
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"there is no verifier in {folder}: {error}", remedy="train one with thinkfast train-verifier"
            ) from error
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
        encode = self.loaded.tokenizer.encode
        end = min(self.loaded.tokenizer.eos_ids, default=None)
        # Text, not the sampled tokens: training reads logs, which hold text, and both must see the same.
        pairs = [(job.prompt, (*encode(job.chain.text), *([] if end is None else [end]))) for job in jobs]
        with torch.inference_mode():
            return [float(p) for p in self.head(features(self.loaded, pairs)).sigmoid()]


def save_head(head: Head, folder: Path, about: dict[str, object]) -> None:
    """Write head and description; ``about`` holds at least "model" and "model_sha". Errors: OutputError."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / HEAD, save({name: p.detach().cpu().contiguous() for name, p in head.state_dict().items()}))
    atomic_write(folder / ABOUT, json.dumps(about, indent=1) + "\n")


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
        mine = hidden[first:last].float()
        # The state before a token is what predicts it.
        logprobs = model.logits(hidden[first - 1 : last - 1]).float().log_softmax(-1)
        said = logprobs.gather(1, tokens[first:last, None]).squeeze(1)
        extra = torch.stack([said.mean(), said.min(), torch.log(torch.tensor(float(len(chain)), device=device))])
        rows.append(torch.cat([mine[-1], mine.mean(0), extra]))
    return torch.stack(rows)
