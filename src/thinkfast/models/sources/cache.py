"""Where fetched and converted models are kept: $THINKFAST_CACHE, or thinkfast in $XDG_CACHE_HOME or ~/.cache;
each whole, or not there.

A model is built in a temporary folder beside its place and renamed into it. One lock for the cache means that any
temporary entry found by its holder is a leftover; guard.py removes them the moment their maker dies.

Usage: ``with workshop(show) as shop: ...; with shop.publish("smollm2", sha, {}) as folder: ...``.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from thinkfast.errors import OutputError
from thinkfast.files import TEMP_PREFIX, atomic_dir, atomic_write, output_errors
from thinkfast.models.sources import guard

FORMAT = 1  # raised when a conversion changes what it writes: older copies are then made again
MANIFEST = "thinkfast.json"


def cache_root() -> Path:
    """The cache's folder, which need not exist."""
    own, base = os.environ.get("THINKFAST_CACHE"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or f"{base}/thinkfast").expanduser()


def cache_place(*names: str) -> Path | None:
    """Where what is called so may be kept, outside of the models; None where nobody has a home."""
    try:
        return cache_root().joinpath(*names)
    except RuntimeError:
        return None


def models_root() -> Path:
    """The folder that holds one folder a model."""
    return cache_root() / "models"


def cached(identity: str) -> Path | None:
    """The model made from the file of that SHA-256, if it is kept."""
    found = sorted(models_root().glob(f"*-{_short(identity)}/{MANIFEST}"))
    return found[0].parent if found else None


def _short(identity: str) -> str:
    return f"{identity[:12]}-v{FORMAT}"


def manifests() -> dict[Path, dict[str, Any]]:
    """What the cache holds: by folder, where the model came from."""
    found: dict[Path, dict[str, Any]] = {}
    for path in sorted(models_root().glob(f"*-v{FORMAT}/{MANIFEST}")):
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            found[path.parent] = content
    return found


@dataclass(frozen=True, slots=True)
class Workshop:
    """A place to work in while the cache's lock is held. scratch: on the cache's disk, gone afterwards; group: the
    process group that ends with us, for helpers such as a download.
    """

    scratch: Path
    group: int

    @contextmanager
    def publish(self, title: str, identity: str, manifest: dict[str, Any]) -> Iterator[Path]:
        """Yield an empty folder that ``cached(identity)`` finds once the block has ended well."""
        stem = re.sub(r"[^A-Za-z0-9.]+", "-", title).strip("-.") or "model"
        place = models_root() / f"{stem}-{_short(identity)}"
        with atomic_dir(place) as folder:
            yield folder
            atomic_write(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


@contextmanager
def workshop(show: Callable[[str], None]) -> Iterator[Workshop]:
    """Hold the cache's lock and a scratch folder; nothing of it is left behind, whatever happens to this process.

    Errors: OutputError where the cache cannot be written.
    """
    root = models_root()
    try:
        with _lock(root, show) as lock, _guarded(root, lock) as group:
            scratch = root / f"{TEMP_PREFIX}{secrets.token_hex(6)}"
            with output_errors(scratch):
                scratch.mkdir()
            yield Workshop(scratch, group)
    except OutputError as error:
        raise OutputError(
            error.message, remedy=f"free space in {cache_root()}, or set THINKFAST_CACHE to a folder you may write"
        ) from error


@contextmanager
def _lock(root: Path, show: Callable[[str], None]) -> Iterator[IO[bytes]]:
    with output_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("ab")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            show("waiting for another thinkfast that is filling the cache")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


@contextmanager
def _guarded(root: Path, lock: IO[bytes]) -> Iterator[int]:
    guard.sweep(root, TEMP_PREFIX)
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, str(root), TEMP_PREFIX],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=(lock.fileno(),),
        process_group=0,
    )
    try:
        yield watcher.pid
    finally:
        watcher.communicate()  # closes its input, and waits until it has cleaned up
