"""Which part of a layer each kernel of a step belongs to, as benchmarks/gpu_profile.py tells it from their order."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from gpu_profile import roles

CUBLAS, OWN = "nvjet_tst_128x64", "_product"


@pytest.mark.parametrize(
    ("kernels", "want"),
    [
        # Many rows of a student: the second layer's input projection without a norm, the head in two parts.
        (
            ["_embed_norm", CUBLAS, "prepare", "advance", CUBLAS, "_inverse_rms", "_gated", CUBLAS, CUBLAS, "prepare",
             "advance", CUBLAS, "_inverse_rms", "_gated", CUBLAS, "_add_norm", CUBLAS, "_scan", CUBLAS, "_scan",
             "_pick"],
            ["norms", "into", "mixer", "mixer", "out", "norms", "gate, up", "down", "into", "mixer", "mixer", "out",
             "norms", "gate, up", "down", "norms", "head", "sampler", "head", "sampler", "sampler"],
        ),
        # A few rows, norms between all products.
        (
            ["_embed_norm", OWN, "whole", OWN, "_add_norm", OWN, OWN, "_add_norm", OWN, "_scan", "_pick"],
            ["norms", "into", "mixer", "out", "norms", "gate, up", "down", "norms", "head", "sampler", "sampler"],
        ),
        # Attention, SwiGLU in a kernel of its own, a product whose shares are added up behind it.
        (
            ["_embed_norm", CUBLAS, "_attend", "_merge", CUBLAS, "_add_norm", CUBLAS, "_swiglu", CUBLAS,
             "splitKreduce_kernel", "_add_norm", CUBLAS, "_scan", "_pick"],
            ["norms", "into", "attention", "attention", "out", "norms", "gate, up", "SwiGLU", "down", "down", "norms",
             "head", "sampler", "sampler"],
        ),
    ],
)  # fmt: skip
def test_roles(kernels: list[str], want: list[str]) -> None:
    assert roles(kernels) == want
