"""Whether the Triton kernels can run: asked before anything imports triton, which CPU builds of torch lack.

Usage: ``if triton_works(device): from thinkfast.engine.cuda.runner import CudaRunner``.
"""

from __future__ import annotations

import importlib.util
import os

import torch


def interpreting() -> bool:
    """Whether Triton runs its kernels in Python, on any device (the CPU tests do)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_works(device: torch.device) -> bool:
    """Whether the kernels can run on tensors of ``device``."""
    if importlib.util.find_spec("triton") is None:
        return False
    return interpreting() or (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0))
