"""Reward models: how likely a chain is right, as a number in [0, 1], from models that transformers loads.

* `OutcomeReward`: a sequence classifier reads question and chain as a chat and gives one logit (its sigmoid) or two
  (the share of the second).
* `ProcessReward`: a causal model trained to answer "+" or "-" after every step, as RLHFlow's Llama3.1-8B-PRM: each
  step is a user turn, its score the probability of "+" against "-" as the assistant's first token. All steps of a
  chain are read in one pass.

They see text, so their tokenizer may be another than the policy's. `judge.verifier` has one that reads the policy's own
hidden states instead.

Legend: n chains, L tokens of the longest, V vocabulary.

Usage: ``solve(problem, seconds=5, voter="weighted", scorer=OutcomeReward.load("path/to/classifier"))``.
Source: RLHFlow/RLHF-Reward-Modeling, math-rm; Lightman et al. 2023, "Let's verify step by step".
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from thinkfast.engine.request import Chain
from thinkfast.errors import InputError, ModelError

Aggregate = Literal["last", "min", "product", "mean"]
REDUCE: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda steps: steps[-1],
    "min": min,
    "product": math.prod,
    "mean": lambda steps: math.fsum(steps) / len(steps),
}


@dataclass(frozen=True, slots=True)
class Job:
    """A chain to score, with its question in words and as the policy's prompt tokens."""

    question: str
    prompt: tuple[int, ...]
    chain: Chain


class Scorer(Protocol):
    """Scores chains in batches."""

    @property
    def name(self) -> str:
        """For messages and tables."""
        ...

    def score(self, jobs: Sequence[Job]) -> list[float]:
        """One number a chain, finite; for weighted votes in [0, 1]."""
        ...


@dataclass(frozen=True, slots=True)
class OutcomeReward:
    """A sequence classifier over (question, chain); make one with `load`."""

    name: str
    model: Any
    tokenizer: Any
    max_tokens: int

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> OutcomeReward:
        """From a folder or a hub id. Errors: ModelError where it is no classifier of one or two labels."""
        model, tokenizer = _load("AutoModelForSequenceClassification", path, device, dtype)
        if model.config.num_labels not in (1, 2):
            raise ModelError(
                f"{path} has {model.config.num_labels} labels", remedy="an outcome reward model has one or two"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        return cls(str(path), model, tokenizer, _positions(model))

    def score(self, jobs: Sequence[Job]) -> list[float]:
        """See Scorer; chains beyond the model's positions lose their beginning."""
        texts = [_conversation(self.tokenizer, job) for job in jobs]
        self.tokenizer.padding_side = "right"
        self.tokenizer.truncation_side = "left"
        batch = self.tokenizer(
            texts,
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            add_special_tokens=self.tokenizer.chat_template is None,
        ).to(self.model.device)
        with torch.inference_mode():
            logits = self.model(**batch).logits.float()  # [n, 1 or 2]
        found = logits[:, 0].sigmoid() if logits.shape[1] == 1 else logits.softmax(-1)[:, 1]
        return [float(value) for value in found]


@dataclass(frozen=True, slots=True)
class ProcessReward:
    """Step scores by "+" against "-" of a causal model; make one with `load`. aggregate: steps to one number."""

    name: str
    model: Any
    tokenizer: Any
    good: int
    bad: int
    aggregate: Aggregate
    separator: str
    max_tokens: int

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        aggregate: Aggregate = "last",
        separator: str = "\n\n",
        marks: tuple[str, str] = ("+", "-"),
    ) -> ProcessReward:
        """From a folder or a hub id.

        Errors: ModelError where its tokenizer has no chat template or a mark is not one token; InputError for an
        unknown ``aggregate``.
        """
        if aggregate not in REDUCE:
            raise InputError(f"aggregate is {aggregate!r}", remedy=f"use one of {', '.join(REDUCE)}")
        model, tokenizer = _load("AutoModelForCausalLM", path, device, dtype)
        if tokenizer.chat_template is None:
            raise ModelError(f"{path} has no chat template", remedy="a process reward model reads steps as chat turns")
        ids = []
        for mark in marks:
            tokens = tokenizer.encode(mark, add_special_tokens=False)
            if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
                raise ModelError(
                    f"{path}: {mark!r} is no token of its tokenizer, and a step's mark must be exactly one",
                    remedy="this tokenizer does not belong to a process reward model; pass its own marks=(…, …)",
                )
            ids.append(tokens[0])
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return cls(str(path), model, tokenizer, ids[0], ids[1], aggregate, separator, _positions(model))

    def score(self, jobs: Sequence[Job]) -> list[float]:
        """See Scorer."""
        reduce = REDUCE[self.aggregate]
        return [reduce(steps) for steps in self.steps(jobs)]

    def steps(self, jobs: Sequence[Job]) -> list[list[float]]:
        """The score of every step of every chain.

        Errors: ModelError where a chain does not fit, or the chat template is none in which steps can be found.
        """
        rendered = [self._render(job) for job in jobs]
        longest = max(len(tokens) for tokens, _ in rendered)
        pad = int(self.tokenizer.pad_token_id or 0)
        device = self.model.device
        ids = torch.tensor([[*tokens, *[pad] * (longest - len(tokens))] for tokens, _ in rendered], device=device)
        mask = torch.tensor([[i < len(tokens) for i in range(longest)] for tokens, _ in rendered], device=device)
        with torch.inference_mode():
            logits = self.model(input_ids=ids, attention_mask=mask.long()).logits  # [n, L, V]
        scores = logits[..., [self.good, self.bad]].float().softmax(-1)[..., 0]
        return [[float(scores[i, at - 1]) for at in places] for i, (_, places) in enumerate(rendered)]

    def _render(self, job: Job) -> tuple[list[int], list[int]]:
        """Tokens of the whole conversation, and where the assistant's mark stands after each step."""
        steps = [step for step in job.chain.text.split(self.separator) if step.strip()] or [job.chain.text]
        turns: list[dict[str, str]] = []
        places: list[int] = []
        mark = self.tokenizer.decode([self.good])
        for number, step in enumerate(steps):
            turns.append({"role": "user", "content": f"{job.question} {step}" if number == 0 else step})
            places.append(len(self._tokens(turns, True)))
            turns.append({"role": "assistant", "content": mark})
        tokens = self._tokens(turns, False)
        if len(tokens) > self.max_tokens:
            raise ModelError(
                f"{self.name} reads {self.max_tokens} tokens, chain {job.chain.index} of {job.chain.request!r} has "
                f"{len(tokens)} with its turns",
                remedy="lower max_tokens of the chains, or use a reward model with more positions",
            )
        if any(tokens[at] != self.good for at in places):
            raise ModelError(
                f"{self.name}: its chat template does not put the mark {mark!r} where a step's answer begins",
                remedy="use the chat template that the reward model was trained with",
            )
        return tokens, places

    def _tokens(self, turns: list[dict[str, str]], prompt: bool) -> list[int]:
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return found


def _conversation(tokenizer: Any, job: Job) -> str:
    if tokenizer.chat_template is None:
        return f"{job.question}\n{job.chain.text}"
    turns = [{"role": "user", "content": job.question}, {"role": "assistant", "content": job.chain.text}]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False)
    return text


def _load(kind: str, path: str | Path, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    transformers = importlib.import_module("transformers")
    try:
        model, told = getattr(transformers, kind).from_pretrained(path, dtype=dtype, output_loading_info=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot load the reward model {path}: {first}", remedy="name a folder or hub id with weights and tokenizer"
        ) from error
    if missing := sorted(told["missing_keys"]):
        raise ModelError(
            f"{path} lacks weights: {', '.join(missing[:3])}",
            remedy="this is no reward model of this kind: its head would be random",
        )
    size = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > size:
        raise ModelError(
            f"{path}: its tokenizer has {len(tokenizer)} tokens and its embedding {size}: they do not belong together",
            remedy="copy the tokenizer that the reward model was trained with beside its weights",
        )
    return model.to(device).eval(), tokenizer


def _positions(model: Any) -> int:
    return int(getattr(model.config, "max_position_embeddings", None) or 1 << 20)
