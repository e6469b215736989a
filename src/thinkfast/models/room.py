"""Whether a model's weights fit into a device's memory, asked before any of them is read.

Usage: ``require_room(spec, torch.bfloat16, torch.device("cuda"))``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from thinkfast.errors import CapacityError
from thinkfast.models.spec import ModelSpec


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on ``device``; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def told(sizes: Iterable[tuple[str, int | None]]) -> list[str]:
    """Lines of a plan: names and bytes, None for what nobody knows."""
    shown = [(name, "unknown" if size is None else f"{size / 2**20:,.1f} MiB") for name, size in sizes]
    return [f"  {name:<36}{size:>14}" for name, size in shown]


def require_room(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> None:
    """Errors: CapacityError, with what is needed and what is there, where the weights in ``dtype`` do not fit."""
    needed, available = spec.n_params * dtype.itemsize, available_memory(device)
    if available is None or needed <= available:
        return
    lines = (("weights", needed), (f"available on {device}", available))
    smaller = "in 16 bits (dtype bf16), " if dtype.itemsize > 2 else ""
    raise CapacityError(
        "\n".join(["the model does not fit in memory:", *told(lines)]),
        remedy=f"load it {smaller}where there is more memory, or a smaller one",
    )
