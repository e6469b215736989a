"""Where a number came from: machine, versions, commit and seed, as one dict for results files.

Why: a figure without its machine and commit cannot be compared with another one.

    results["provenance"] = provenance(seed=0)
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import thinkfast

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def machine() -> dict[str, str | int | float | None]:
    """CPU model, usable cores, memory in GiB, operating system, and the accelerator where torch has found one."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "os": platform.platform(),
        "accelerator": _accelerator(),
    }


def versions() -> dict[str, str | None]:
    """Version of Python, thinkfast and the packages that results depend on; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "thinkfast": thinkfast.__version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit(package_dir: Path | None = None) -> str | None:
    """Commit of the checkout this package runs from, with "-dirty" for changed tracked files; None outside one."""
    package = _checkout(package_dir)
    head = package and _git(package, "rev-parse", "HEAD")
    if package is None or not head:
        return None
    return f"{head}-dirty" if _git(package, "status", "--porcelain", "--untracked-files=no") else head


def source(package_dir: Path | None = None) -> str | None:
    """Git's name for the code that runs, as its files lie there: ``git rev-parse COMMIT:src/thinkfast`` of the commit
    that has it, which says what "-dirty" leaves open. None outside a checkout.
    """
    package = _checkout(package_dir)
    stored = package and _git(package, "rev-parse", "--path-format=absolute", "--git-path", "objects")
    if package is None or not stored:
        return None
    # An index and objects of its own: the repository is only read.
    with tempfile.TemporaryDirectory() as own:
        scratch = {
            "GIT_INDEX_FILE": f"{own}/index",
            "GIT_OBJECT_DIRECTORY": own,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": stored,
        }
        if _git(package, "add", "--all", ".", more=scratch) is None:
            return None
        return _git(package, "write-tree", "--prefix=src/thinkfast/", more=scratch)


def provenance(seed: int | None = None) -> dict[str, object]:
    """All of the above as one JSON-ready dict: machine, versions, commit, source, seed."""
    return {"machine": machine(), "versions": versions(), "commit": commit(), "source": source(), "seed": seed}


def _checkout(package_dir: Path | None) -> Path | None:
    """The package's folder, if it is that of a checkout of ours."""
    package = (package_dir or Path(__file__).parent).resolve()
    top = _git(package, "rev-parse", "--show-toplevel")
    # An environment inside somebody else's repository is none.
    return package if top and Path(top).resolve() / "src" / "thinkfast" == package else None


def _git(folder: Path, *arguments: str, more: Mapping[str, str] | None = None) -> str | None:
    # A hook or a worktree tool may have set GIT_DIR for another repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | dict(more or {})
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            check=False,
            text=True,
            timeout=10,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def peak_memory_gib() -> float | None:
    """Most memory this process has held so far, resident; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    # Linux counts in KiB, macOS in bytes.
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / (2**30 if sys.platform == "darwin" else 2**20)


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _accelerator() -> str | None:
    torch = sys.modules.get("torch")  # asking must not cost an import of torch
    if torch is None or not torch.cuda.is_available():
        return None
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
