"""Every kernel of a prefill and a step compiles for a Hopper, fits its shared memory and does not spill: what Triton's
interpreter cannot tell, on machines without a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")

# Bytes a thread keeps in memory: a spilled counter costs nothing, a spilled tile (5 KB and more) everything.
MOST = 512


def compiled(cases: list[str], cache: Path) -> list[dict[str, Any]]:
    """What hopper.py tells of ``cases``."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).parent / "hopper.py"
    done = subprocess.run(
        [sys.executable, script, *cases], capture_output=True, text=True, env={**env, "TRITON_CACHE_DIR": str(cache)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kernels: list[dict[str, Any]] = json.loads(done.stdout)
    return kernels


def check(kernels: list[dict[str, Any]]) -> set[str]:
    spilled = [kernel for kernel in kernels if kernel["stack"] > MOST]
    assert not spilled, spilled
    return {kernel["name"] for kernel in kernels}


def test_a_step_of_few_and_of_many_rows(tmp_path: Path) -> None:
    """Rows for own products and a mixer in one kernel, and for cuBLAS's, gate and up at once, a mixer in two."""
    names = check(compiled(["hybrid:16:256:bf16", "hybrid:16:8:bf16"], tmp_path))
    step = {
        "_embed_norm",
        "_add_norm",
        "_product",
        "_gated",
        "whole",
        "prepare",
        "advance",
        "_attend",
        "_scan",
        "_pick",
    }
    assert names >= step | {"_convolve", "_walk", "_merge", "_attend_prompt"}


@pytest.mark.slow
@pytest.mark.parametrize("state", ["fp32", "bf16", "fp8"])
def test_every_way_of_cutting_a_step(state: str, tmp_path: Path) -> None:
    cases = [f"pure:{n}:{rows}:{state}" for n in (16, 32, 64, 128) for rows in (8, 33, 64, 128, 256)]
    check(
        compiled(
            [*cases, f"teacher:16:256:{state}", f"hybrid:16:8:{state}:fp8", f"hybrid:16:256:{state}:fp8"], tmp_path
        )
    )
