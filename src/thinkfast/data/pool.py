"""A pool of tokenised examples in flat arrays: tokenise once, then feed training from memory.

Why flat: whole examples of any length lie back to back, so that a batch is one gather with no padding, and a pool of
400k examples is three numpy arrays that load in a moment.

Usage: `Pool.procedural("train", 400_000, tokenizer_dir="src/thinkfast/assets/tiny", workers=16)`
Workers are started with "spawn": a script that asks for more than one needs `if __name__ == "__main__":`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from thinkfast.data.procedural import SEED, generate
from thinkfast.data.prompts import prompt_tokens
from thinkfast.data.workers import map_in_workers
from thinkfast.errors import InputError

if TYPE_CHECKING:
    from thinkfast.models.tokenizer import Tokenizer

CHUNK = 4_000  # examples per worker task: large enough to hide the start, small enough to share the work evenly


@dataclass(frozen=True, slots=True)
class Example:
    """One training text: prompt, answer and the end token; `prompt_len` counts the prompt's tokens."""

    tokens: tuple[int, ...]
    prompt_len: int


@dataclass(frozen=True, slots=True)
class Pool:
    """n examples: tokens [sum of lengths], starts [n + 1] (example i is starts[i]:starts[i + 1]), prompt_lens [n]."""

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    prompt_lens: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.prompt_lens)

    def example(self, i: int) -> Example:
        """Example i. Raises IndexError outside 0..len - 1."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        tokens = self.tokens[self.starts[i] : self.starts[i + 1]]
        return Example(tuple(tokens.tolist()), int(self.prompt_lens[i]))

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Pool:
        """Pool of examples in the given order. Raises InputError on none, or on an example without an answer."""
        flat: list[int] = []
        starts = [0]
        prompts: list[int] = []
        for number, example in enumerate(examples):
            if not 0 < example.prompt_len < len(example.tokens):
                raise InputError(
                    f"example {number} has {len(example.tokens)} tokens, {example.prompt_len} of them prompt",
                    remedy="give every example a prompt and an answer",
                )
            flat += example.tokens
            starts.append(len(flat))
            prompts.append(example.prompt_len)
        if not prompts:
            raise InputError(
                "no examples to learn from", remedy="give a source with at least one question and solution"
            )
        return cls(np.array(flat, np.int32), np.array(starts, np.int64), np.array(prompts, np.int64))

    @classmethod
    def texts(cls, pairs: Iterable[tuple[str, str]], tokenizer: Tokenizer, max_tokens: int | None = None) -> Pool:
        """Pool of (question, solution) pairs under the chat template; longer than `max_tokens` are left out."""
        end = min(tokenizer.eos_ids)
        examples = (encode(question, solution, tokenizer, end) for question, solution in pairs)
        return cls.of(e for e in examples if max_tokens is None or len(e.tokens) <= max_tokens)

    @classmethod
    def procedural(
        cls,
        split: str,
        count: int,
        *,
        tokenizer_dir: str | Path,
        difficulties: Sequence[int] | None = None,
        seed: int = SEED,
        first: int = 0,
        workers: int | None = None,
    ) -> Pool:
        """`count` procedural problems, the same arrays whatever `workers` is (None: all cores for large pools).

        Args:
            split: "train", "val" or "test".
            count: number of examples, at least 1.
            tokenizer_dir: folder with tokenizer.json and the chat template.
            difficulties: level of example i is difficulties[i % len]; None draws from the split's mixture.
            seed: seed of the task.
            first: index of the first problem, so that two pools of one split can be kept apart.
            workers: processes.
        """
        if count < 1:
            raise InputError(f"a pool of {count} examples", remedy="ask for at least 1")
        levels = tuple(difficulties) if difficulties is not None else None
        for level in levels or ():
            generate(0, split, level, seed)  # an unknown split or level fails here, not inside a worker
        if workers is None:
            workers = min(os.cpu_count() or 1, count // CHUNK + 1)
        jobs = [
            (split, range(i, min(i + CHUNK, first + count)), levels, seed, str(tokenizer_dir))
            for i in range(first, first + count, CHUNK)
        ]
        if workers <= 1:
            return join(map(_chunk, jobs))
        return join(map_in_workers(_chunk, jobs, workers))

    def save(self, path: str | Path) -> None:
        """Write one .npz file, whole or not at all."""
        path = Path(path)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        with part.open("wb") as file:
            np.savez(file, tokens=self.tokens, starts=self.starts, prompt_lens=self.prompt_lens)
        part.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Pool:
        """Read what `save` wrote. Raises InputError when the file is missing or damaged."""
        try:
            with Path(path).open("rb") as file, np.load(file) as arrays:
                return cls(arrays["tokens"], arrays["starts"], arrays["prompt_lens"])
        except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
            raise InputError(f"cannot read the pool {path}: {error}", remedy="delete it and build it again") from error


def encode(question: str, solution: str, tokenizer: Tokenizer, end: int) -> Example:
    """One example: the prompt as an evaluation asks it, the solution, the end token."""
    asked = prompt_tokens(tokenizer, question)
    return Example((*asked, *tokenizer.encode(solution), end), len(asked))


def join(pools: Iterable[Pool]) -> Pool:
    """Pools one after another as one pool. Raises InputError when there is none."""
    parts = list(pools)
    if not parts:
        raise InputError("no pools to join", remedy="give at least one")
    sizes = [0, *np.cumsum([p.starts[-1] for p in parts[:-1]]).tolist()]
    starts = [p.starts[:-1] + size for p, size in zip(parts, sizes, strict=True)]
    total = np.array([sizes[-1] + parts[-1].starts[-1]], np.int64)
    return Pool(
        np.concatenate([p.tokens for p in parts]),
        np.concatenate([*starts, total]),
        np.concatenate([p.prompt_lens for p in parts]),
    )


def _chunk(job: tuple[str, range, tuple[int, ...] | None, int, str]) -> Pool:
    split, indices, levels, seed, tokenizer_dir = job
    from thinkfast.models.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_dir(tokenizer_dir)
    problems = (generate(i, split, levels[i % len(levels)] if levels else None, seed) for i in indices)
    return Pool.texts(((p.question, p.solution or "") for p in problems), tokenizer)
