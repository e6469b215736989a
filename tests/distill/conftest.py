"""A small random teacher, a student of it, and short random examples to learn from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from thinkfast.data.corpus import Batch, Corpus
from thinkfast.data.pool import Example, Pool
from thinkfast.models.decoder import Decoder
from thinkfast.models.spec import ModelSpec

MakeModel = Callable[..., Decoder]
VOCAB = 40


@pytest.fixture
def make_model() -> MakeModel:
    """make_model("teacher" | "hybrid" | "pure", seed, dtype, **spec changes): every parameter random."""

    def make(kind: str = "teacher", seed: int = 0, dtype: torch.dtype = torch.float64, **changes: object) -> Decoder:
        sizes: dict[str, object] = {"vocab_size": VOCAB, "d_model": 24, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6}
        sizes |= {"d_ff": 32, "layer_types": ("attention",) * 3}
        spec = ModelSpec(**(sizes | changes))  # type: ignore[arg-type]
        if kind != "teacher":
            spec = spec.as_student((1,) if kind == "hybrid" else ())
        model = Decoder(spec).to(dtype).requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            wide = "conv" in name or "embed" in name
            p.copy_(p + 0.3 * noise if p.dim() < 2 else noise * (1.0 if wide else p.shape[1] ** -0.5))
        return model

    return make


@pytest.fixture
def corpus() -> Corpus:
    """Examples of 6 to 30 random tokens, batches of about 60."""
    generator = torch.Generator().manual_seed(5)

    def example() -> Example:
        length = int(torch.randint(6, 31, (1,), generator=generator))
        tokens = torch.randint(0, VOCAB, (length,), generator=generator).tolist()
        return Example(tuple(tokens), int(torch.randint(1, length - 1, (1,), generator=generator)))

    return Corpus(Pool.of(example() for _ in range(40)), tokens_per_batch=60, seed=0)


@pytest.fixture
def batch(corpus: Corpus) -> Batch:
    return corpus.batch(0)


class Jobs:
    """Training runs in processes of their own; see zygote.py."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        script = Path(__file__).with_name("zygote.py")
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, kind: str, folder: Path, *, kill_after: float | None = None, **job: object) -> int:
        """Run one job to its end, or SIGKILL it after so many seconds; returns its exit status."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"kind": kind, "folder": str(folder), **job}) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def jobs() -> Iterator[Jobs]:
    found = Jobs()
    yield found
    found.close()
