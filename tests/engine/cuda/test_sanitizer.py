"""No kernel reads or writes outside what it was given: compute-sanitizer over a prefill, forks and steps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import sanitized
from driving import drive
from toy_models import random_model

from thinkfast.models.spec import ModelSpec

# A toolkit's own place; not every machine has it on its path.
PLACES = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")


def told_by(command: list[str], **env: str) -> tuple[int, str]:
    """Its exit code and all that it says."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env)
    return done.returncode, done.stdout + done.stderr


def watched(tool: str, *what: str) -> tuple[int, str]:
    """The exit code and all that is said where ``tool`` watches sanitized.py do ``what``."""
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, sanitized.__file__, *what]
    # Of torch's blocks, which many tensors share, the tool knows the ends only: every tensor gets memory of its own.
    return told_by(command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def check(tool: str) -> None:
    """Run sanitized.py under ``tool``, which has to have watched all of it and found nothing."""
    code, told = watched(tool)
    assert code == 0, told[-3000:]
    assert "ERROR SUMMARY: 0 errors" in told, told[-3000:]
    assert told.count("done") == len(sanitized.CASES), told[-3000:]


@pytest.fixture
def sanitizer() -> str:
    tool = next((found for place in PLACES if (found := shutil.which(place))), None)
    assert tool is not None, "compute-sanitizer is not here: install the CUDA toolkit, or put it on the PATH"
    return tool


@pytest.mark.gpu
def test_memcheck_finds_nothing(sanitizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Products are measured in captured graphs, and within a capture no tensor can get memory of its own: so it happens
    # beforehand, by a process that keeps what it chose.
    monkeypatch.setenv("THINKFAST_CACHE", str(tmp_path))
    code, told = told_by([sys.executable, sanitized.__file__])
    assert code == 0, told[-3000:]
    assert (tmp_path / "products.json").exists()
    check(sanitizer)


@pytest.mark.gpu
def test_memcheck_finds_one_number_written_behind_a_tensor(sanitizer: str) -> None:
    """Which, with torch's own blocks, would lie within one of them."""
    code, told = watched(sanitizer, "beyond")
    assert code == 9, told[-3000:]
    assert "Invalid __global__ write of size 4" in told, told[-3000:]


ALL = "echo done\n" * len(sanitized.CASES)
CLEAN = "echo '========= ERROR SUMMARY: 0 errors'\n"


@pytest.mark.parametrize(
    ("says", "passes"),
    [
        (ALL + CLEAN, True),
        (ALL + "echo '========= ERROR SUMMARY: 1 error'\nexit 9\n", False),
        (ALL + "echo '========= ERROR SUMMARY: 1 error'\n", False),  # whatever it made of --error-exitcode
        (ALL, False),  # it did not watch
        ("echo done\n" + CLEAN, False),  # what it watched came to an early end
        ("exit 1\n", False),
    ],
)
def test_a_tool_that_finds_something_or_has_not_watched_is_a_failure(says: str, passes: bool, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\n" + says)
    tool.chmod(0o755)
    if passes:
        check(str(tool))
    else:
        with pytest.raises(AssertionError):
            check(str(tool))


# The interpreter turns arrays of one element into numbers, of which numpy 2.3 warns.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_watched_says_as_many_tokens_as_it_makes_steps() -> None:
    """By the interpreter too, at a size for it."""
    spec = ModelSpec(64, 32, 2, 1, 16, 32, ("attention",) * 2, tie_embeddings=False, max_positions=256)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = random_model(spec.as_student((0,), 16)).to(device)
    said = drive(model, 2, torch.float32, sanitized.PROMPTS[:2], steps=2)
    # The first token comes with the fork; a step's are heard with the next.
    assert [len(tokens) for tokens in said] == [2, 2]
    assert all(0 <= token < 64 for tokens in said for token in tokens)
