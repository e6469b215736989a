"""What memory there is, whether a model's weights fit into it (asked before any of them is read), and what to say where
it runs out.

Usage: ``require_room(spec, torch.bfloat16, torch.device("cuda"))``; ``with refusing(told, remedy): …``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from thinkfast.errors import CapacityError
from thinkfast.models.spec import ModelSpec

_GROUP = Path("/sys/fs/cgroup")


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on ``device``; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    there = (_number("/proc/meminfo", "MemAvailable:", 1024), _in_container(), _in_address_space())
    return min((size for size in there if size is not None), default=None)


def _number(path: str | Path, name: str = "", unit: int = 1) -> int | None:
    """The number behind ``name`` in a file of the system's, its first without a name; None where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    words = next((line.removeprefix(name).split() for line in lines if line.startswith(name)), [])
    return int(words[0]) * unit if words and words[0].isdecimal() else None


def _in_container() -> int | None:
    """What is left of a control group's limit, where there is one; cached files make way."""
    most, taken = (_number(_GROUP / f"memory.{name}") for name in ("max", "current"))
    if most is None or taken is None:
        return None
    return max(0, most - taken + (_number(_GROUP / "memory.stat", "inactive_file ") or 0))


def _in_address_space() -> int | None:
    """What is left of a limit on the process, as ``ulimit -v`` sets."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    most, taken = resource.getrlimit(resource.RLIMIT_AS)[0], _number("/proc/self/status", "VmSize:", 1024)
    return None if most == resource.RLIM_INFINITY or taken is None else max(0, most - taken)


@contextmanager
def refusing(told: str, remedy: str) -> Iterator[None]:
    """Errors: CapacityError with ``told`` and ``remedy`` where memory runs out within, on any device."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        # torch has no kind of error of its own for a CPU's memory.
        kinds = torch.OutOfMemoryError, MemoryError
        out = isinstance(error, kinds) or "can't allocate memory" in str(error)
        if not out and getattr(error, "errno", None) != errno.ENOMEM:
            raise
        raise CapacityError(told, remedy=remedy) from error


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
