"""No kernel reads or writes outside what it was given: compute-sanitizer over a prefill, forks and steps."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")
sys.path.append(str(Path(__file__).parent))

import sanitized

# A toolkit's own place; not every machine has it on its path.
PLACES = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")


@pytest.mark.gpu
def test_memcheck_finds_nothing() -> None:
    tool = next((found for place in PLACES if (found := shutil.which(place))), None)
    if tool is None:
        pytest.skip("compute-sanitizer comes with the CUDA toolkit, which is not here")
    script = Path(sanitized.__file__)
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-3000:]
    assert "ERROR SUMMARY: 0 errors" in told
    assert told.count("done") == len(sanitized.CASES)


# The interpreter turns arrays of one element into numbers, of which numpy 2.3 warns.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_watched_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the interpreter too, at a size for it."""
    monkeypatch.setattr(sanitized, "PROMPTS", 2)
    monkeypatch.setattr(sanitized, "STEPS", 2)
    small = replace(sanitized.WIDE, vocab_size=64, d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sanitized.watched(small.as_student((0,), 16), 2, torch.float32, torch.float32, device)
