"""A verifier or a reward model from a folder, with the engine it scores for.

Usage: ``llm, scorer = with_scorer("tiny", Path("runs/verifier"), problem, n=64, max_tokens=512)``.
"""

from __future__ import annotations

import json
from pathlib import Path

from thinkfast.engine.llm import LLM
from thinkfast.errors import InputError
from thinkfast.judge.reward import OutcomeReward, ProcessReward, Scorer
from thinkfast.judge.solve import most_rows, open_model
from thinkfast.judge.verifier import ABOUT, Verifier
from thinkfast.models.loading import Loaded


def with_scorer(
    model: str, folder: Path, problem: str, n: int, max_tokens: int, device: str = "cpu", dtype: str | None = None
) -> tuple[LLM, Scorer]:
    """The engine for one problem and the scorer in ``folder``. Errors: ModelError, InputError, CapacityError."""
    loaded = open_model(model, device, dtype)
    scorer = load_scorer(folder, loaded)
    prompt = len(loaded.tokenizer.chat(problem)) if problem.strip() else 1
    limit = loaded.spec.max_positions if loaded.spec.n_attention else prompt + max_tokens
    rows, longest = most_rows(loaded, n), min(max(prompt + max_tokens, 2), limit)
    return LLM(loaded, rows, longest, keep_hidden=isinstance(scorer, Verifier)), scorer


def load_scorer(folder: Path, loaded: Loaded) -> Scorer:
    """A verifier of ours, an outcome classifier or a process reward model, by what the folder holds.

    Errors: InputError where it holds none; ModelError.
    """
    if (folder / ABOUT).is_file():
        return Verifier.load(folder, loaded)
    try:
        architectures = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} holds no verifier and no reward model: {error}",
            remedy=f"name a folder with {ABOUT} (thinkfast train-verifier) or with a transformers config.json",
        ) from error
    device = str(loaded.model.head_weight.device)
    kind = OutcomeReward if "SequenceClassification" in architectures[0] else ProcessReward
    return kind.load(folder, device=device)
