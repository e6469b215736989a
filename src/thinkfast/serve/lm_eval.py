"""lm-evaluation-harness drives our engine: an adapter that registers the model type "thinkfast" when imported.

Why: other people's tasks and prompts on our engine, and a check of our own scores against the harness's. The harness is
an optional extra (`pip install 'thinkfast[lm-eval]'`), and this file is the only one that imports it.

Usage: ``lm = adapter("tiny", max_batch=64); lm_eval.simple_evaluate(model=lm, tasks=["gsm8k"])``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from thinkfast.engine.llm import LLM
from thinkfast.engine.request import SamplingParams
from thinkfast.errors import InputError, ModelError
from thinkfast.models.ragged import Ragged

CHUNK = 16  # sequences of one packed pass over log-likelihoods


def adapter(model: str | LLM, *, max_batch: int = 64, chat: bool = True, max_tokens: int = 512) -> Any:
    """An `lm_eval.api.model.LM` on our engine.

    chat: render each request through the model's chat template as one question; otherwise text is continued.

    Errors: ModelError where the harness is not installed.
    """
    try:
        base = importlib.import_module("lm_eval.api.model").LM
    except ImportError as error:
        raise ModelError(
            f"lm-evaluation-harness cannot be imported: {error}", remedy="pip install 'thinkfast[lm-eval]'"
        ) from error
    llm = model if isinstance(model, LLM) else LLM(model, max_batch)
    engine = Harness(llm, chat, max_tokens)

    class Adapter(base):  # type: ignore[misc,valid-type]
        """What the harness asks for, handed on."""

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            return engine.generate([each.args for each in requests])

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return engine.loglikelihood([each.args for each in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            return [score for score, _ in engine.loglikelihood([("", each.args[0]) for each in requests])]

    return Adapter()


class Harness:
    """The harness's three questions, answered by our engine; free of the harness itself."""

    def __init__(self, llm: LLM, chat: bool, max_tokens: int) -> None:
        self.llm, self.chat, self.max_tokens = llm, chat, max_tokens

    def generate(self, asked: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """One text a (context, generation arguments); equal arguments share a batch.

        Errors: InputError for an argument we do not know, which would otherwise be a score of something else.
        """
        groups: dict[SamplingParams, list[int]] = {}
        for at, (_, arguments) in enumerate(asked):
            groups.setdefault(self._params(arguments), []).append(at)
        texts = [""] * len(asked)
        for params, places in groups.items():
            prompts: list[str | Sequence[int]] = [
                asked[at][0] if self.chat else self._tokens(asked[at][0]) for at in places
            ]
            for at, chains in zip(places, self.llm.generate(prompts, params), strict=True):
                texts[at] = chains[0].text
        return texts

    def loglikelihood(self, asked: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For every (context, continuation): its log-probability, and whether it is the greedy continuation."""
        found: list[tuple[float, bool]] = []
        for start in range(0, len(asked), CHUNK):
            found += self._likelihoods(asked[start : start + CHUNK])
        return found

    @torch.inference_mode()
    def _likelihoods(self, asked: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        model = self.llm.loaded.model
        device = model.head_weight.device
        pairs = [(self._tokens(context), self.llm.tokenizer.encode(text)) for context, text in asked]
        tokens = torch.tensor([t for context, text in pairs for t in (*context, *text)], device=device)
        lens = torch.tensor([len(context) + len(text) for context, text in pairs], device=device)
        hidden = model(tokens, Ragged(lens))
        found, start = [], 0
        for context, text in pairs:
            first, last = start + len(context), start + len(context) + len(text)
            logprobs = model.logits(hidden[first - 1 : last - 1]).float().log_softmax(-1)
            wanted = tokens[first:last]
            score = float(logprobs.gather(1, wanted[:, None]).sum())
            found.append((score, bool((logprobs.argmax(-1) == wanted).all())))
            start = last
        return found

    def _tokens(self, text: str) -> list[int]:
        """The context's tokens, at least one: a model predicts from something."""
        return self.llm.tokenizer.encode(text) or [min(self.llm.tokenizer.eos_ids, default=0)]

    def _params(self, arguments: dict[str, Any]) -> SamplingParams:
        known = {"until", "do_sample", "temperature", "top_p", "top_k", "max_gen_toks", "max_new_tokens"}
        if unknown := sorted(set(arguments) - known):
            raise InputError(
                f"the task asks for {unknown[0]!r}, which this adapter does not know",
                remedy="pass gen_kwargs without it",
            )
        until = arguments.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(text for text in until if text)
        sampled = bool(arguments.get("do_sample", False)) and float(arguments.get("temperature", 0)) > 0
        return SamplingParams(
            1,
            float(arguments.get("temperature", 1.0)) if sampled else 0.0,
            float(arguments.get("top_p", 1.0)),
            int(arguments.get("top_k", 0)),
            max_tokens=int(arguments.get("max_gen_toks") or arguments.get("max_new_tokens") or self.max_tokens),
            stop=stop,
        )
