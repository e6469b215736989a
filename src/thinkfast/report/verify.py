"""Train a verifier's head on the checked samples of a log, and score a log with it.

The problems of the log, which must be ones to develop on, are split: most to train on, some to say when to stop. The
features of every chain are computed once; the head then trains in seconds.

Usage: ``train_verifier(VerifierRecipe(model="tiny", log=Path("runs/val")), Path("runs/verifier"))``.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thinkfast.config import to_dict
from thinkfast.engine.request import Chain
from thinkfast.errors import InputError
from thinkfast.judge.grader import checked
from thinkfast.judge.reward import Job, Scorer
from thinkfast.judge.verifier import Head, features, save_head
from thinkfast.models.loading import Loaded, load_model
from thinkfast.provenance import provenance
from thinkfast.report.results import load_results
from thinkfast.report.samples import SAMPLES, Row, read_rows

BATCH = 16


@dataclass(frozen=True, slots=True)
class VerifierRecipe:
    """What to train on, and how. log: folder of an evaluation on problems to develop on; samples: chains of each
    problem that are read; held_out: share of the problems that decide when to stop.
    """

    model: str
    log: Path
    system: str | None = None
    samples: int = 12
    held_out: float = 0.2
    width: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    steps: int = 600
    seed: int = 0

    def validate(self) -> None:
        """Refuse numbers out of range."""
        if self.samples < 1 or self.width < 1 or self.steps < 1 or not 0 < self.held_out < 1:
            raise ValueError("samples, width and steps must be at least 1, and held_out between 0 and 1")


def train_verifier(recipe: VerifierRecipe, out: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train, write the head into ``out``, and return what `verifier.json` holds.

    Errors: InputError for a test log, for chains that are all right or all wrong; ModelError.
    """
    recipe.validate()
    began = time.monotonic()
    evaluation = load_results(recipe.log)["eval"]
    name = str(evaluation["config"]["problems"])
    if "test" in name or name == "math500":
        raise InputError(f"{recipe.log} holds samples of {name}, a test set", remedy="train on tiny_train or tiny_val")
    loaded = load_model(recipe.model)
    system = recipe.system or recipe.model
    rows = [row for row in read_rows(recipe.log / SAMPLES) if row.system == system and row.sample < recipe.samples]
    rows = [row for row in rows if row.correct is not None and row.key is not None and row.text.strip()]
    if not rows or len({row.correct for row in rows}) < 2:
        raise InputError(
            f"{len(rows)} answered chains by {system!r}, all alike: there is nothing to tell apart",
            remedy="sample more problems, some of which the model gets wrong",
        )
    questions = {str(p["id"]): str(p["question"]) for p in evaluation["problems"]}
    say(f"{len(rows)} chains of {len(questions)} problems of {name}")
    x = features(loaded, [_pair(loaded, questions[row.problem], row.text) for row in rows])
    y = torch.tensor([float(bool(row.correct)) for row in rows], device=x.device)
    order = sorted(questions)
    random.Random(recipe.seed).shuffle(order)
    held = set(order[: max(1, round(recipe.held_out * len(order)))])
    outside = torch.tensor([row.problem in held for row in rows], device=x.device)
    head, losses = fit_head(x[~outside], y[~outside], x[outside], y[outside], recipe)
    with torch.inference_mode():
        area = auc(head(x[outside]), y[outside] > 0.5)
    about: dict[str, Any] = {
        "model": recipe.model,
        "model_sha": loaded.sha,
        "recipe": to_dict(recipe),
        "trained_on": name,
        "chains": len(rows),
        "held_out_loss": losses[-1],
        "held_out_auc": area,
        "parameters": sum(p.numel() for p in head.parameters()),
        "seconds": time.monotonic() - began,
        "provenance": provenance(recipe.seed),
    }
    save_head(head, out, about)
    say(f"held-out loss {losses[-1]:.4f}, area under the curve {area:.3f}; {out}")
    return about


def fit_head(x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor, recipe: VerifierRecipe) -> tuple[Head, list[float]]:
    """The head with the least loss on the held-out chains, and the losses of the best so far; full-batch AdamW."""
    torch.manual_seed(recipe.seed)
    head = Head(x.shape[1], recipe.width).to(x.device)
    head.centre.copy_(x.mean(0))
    head.scale.copy_(x.std(0).clamp(min=1e-6))
    trained = [p for p in head.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=recipe.weight_decay)
    loss_of = torch.nn.functional.binary_cross_entropy_with_logits
    best, state, losses = float("inf"), head.state_dict(), list[float]()
    for step in range(recipe.steps):
        optimiser.zero_grad()
        loss_of(head(x), y).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % 10 == 9 or step == recipe.steps - 1:
            with torch.inference_mode():
                held = float(loss_of(head(x_held), y_held))
            if held < best:
                best, state = held, {name: value.detach().clone() for name, value in head.state_dict().items()}
            losses.append(best)
    head.load_state_dict(state)
    return head.eval().requires_grad_(False), losses


def auc(scores: Tensor, right: Tensor) -> float:
    """Probability that a right chain scores above a wrong one; 0.5 where there are not both."""
    good, bad = scores[right], scores[~right]
    if not len(good) or not len(bad):
        return 0.5
    return float((good[:, None] > bad).float().mean() + 0.5 * (good[:, None] == bad).float().mean())


def score_rows(
    rows: Iterable[Row], questions: Mapping[str, str], loaded: Loaded, scorer: Scorer
) -> tuple[list[Row], float]:
    """``rows`` with their scores, and the seconds it took; chains without an answer score 0.

    Errors: ModelError for a score that is not finite.
    """
    began = time.monotonic()
    every = list(rows)
    jobs = [
        (at, Job(questions[row.problem], _prompt(loaded, questions[row.problem]), _chain(row)))
        for at, row in enumerate(every)
        if row.key is not None
    ]
    scores = [0.0] * len(every)
    for start in range(0, len(jobs), BATCH):
        part = jobs[start : start + BATCH]
        for (at, _), score in zip(part, checked(scorer, [job for _, job in part]), strict=True):
            scores[at] = score
    return [replace(row, score=score) for row, score in zip(every, scores, strict=True)], time.monotonic() - began


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """A sample log of ``rows``. Errors: OutputError."""
    from thinkfast.files import atomic_write
    from thinkfast.report.samples import row_dict

    atomic_write(path, "".join(json.dumps(row_dict(row)) + "\n" for row in rows))


def _prompt(loaded: Loaded, question: str) -> tuple[int, ...]:
    return tuple(loaded.tokenizer.chat(question))


def _pair(loaded: Loaded, question: str, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    end = min(loaded.tokenizer.eos_ids, default=None)
    return _prompt(loaded, question), (*loaded.tokenizer.encode(text), *([] if end is None else [end]))


def _chain(row: Row) -> Chain:
    return Chain(row.problem, row.sample, (0,) * row.tokens, row.text, row.logprob or 0.0, None, "stop", row.seconds, 0)
