"""Writing results so that a kill, a full disk or a second run never leaves half a file.

Why: a run may be killed at any moment and must go on from what is on disk, so every file here is either the old one
or the new one, and every log holds whole lines only. Each OSError becomes an OutputError naming path and remedy.

    require_output_dir(out, "run.json"); atomic_write(out / "results.json", text)
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from thinkfast.errors import OutputError

TEMP_PREFIX = ".thinkfast-tmp-"

_REMEDIES = {
    errno.ENOSPC: ("the disk is full", "free some space, then run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, then run the same command again"),
    errno.EACCES: ("permission denied", "choose a folder you may write, for example --out ~/thinkfast-run"),
    errno.EPERM: ("permission denied", "choose a folder you may write, for example --out ~/thinkfast-run"),
    errno.EROFS: ("the file system is read-only", "choose a folder on a writable disk with --out"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another --out"),
    errno.EEXIST: ("a file stands where a folder is needed", "choose another --out, or move that file"),
    errno.EISDIR: ("a folder stands where a file is needed", "choose another path, or move that folder"),
    errno.ENOENT: ("the folder does not exist", "create it, or choose another path"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter path"),
}


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError raised inside, or one that a Rust library wrapped, into an OutputError about `path`."""
    try:
        yield
    except OSError as error:
        raise _output_error(path, error.errno or 0, error.strerror or str(error)) from error
    except Exception as error:
        wrapped = re.search(r"\(os error (\d+)\)", str(error))  # how safetensors and tokenizers report one
        if wrapped is None:
            raise
        raise _output_error(path, int(wrapped[1]), str(error)) from error


def _output_error(path: Path, number: int, text: str) -> OutputError:
    reason, remedy = _REMEDIES.get(number, (text, "choose another place"))
    return OutputError(f"cannot write {path}: {reason}", remedy=remedy)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed over `path`, on failure removed.

    For writers that want a file name, such as safetensors. Keeps the suffix, which some writers look at.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is no file, and is not replaced", remedy="name a file, new or old")
    temp = path.with_name(f"{TEMP_PREFIX}{secrets.token_hex(6)}{path.suffix}")
    with output_errors(path):
        try:
            yield temp
            _sync(temp)
            temp.replace(path)
            _sync(path.parent)
        except BaseException:
            with suppress(OSError):
                temp.unlink()
            raise


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Replace the file `path` by `content` at once: a reader, or a kill, sees the old bytes or the new ones.

    Raises:
        OutputError: the place cannot be written; `path` is then unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    with atomic_path(path) as temp:
        temp.write_bytes(data)


def require_file_place(path: Path) -> None:
    """Refuse a place where `path` could not be written, before the minutes of work and not after.

    Raises:
        OutputError: saying why.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder", remedy=f"name a file, for example {path / 'out.json'}")
    with output_errors(path), suppress(_Probed), atomic_path(path) as temp:
        temp.touch()
        raise _Probed


class _Probed(Exception):
    """Ends a probe without replacing anything."""


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `path` when the block ends well: a checkpoint whole or not at all.

    An existing `path` is replaced. A kill between its removal and the rename leaves no `path`, never a mixed one.
    """
    path = Path(path)
    temp = path.with_name(f"{TEMP_PREFIX}{secrets.token_hex(6)}")
    with output_errors(path):
        try:
            temp.mkdir(parents=True)
            yield temp
            for file in temp.rglob("*"):
                _sync(file)
            if path.exists():
                old = path.with_name(f"{TEMP_PREFIX}{secrets.token_hex(6)}")
                path.replace(old)
                temp.replace(path)
                shutil.rmtree(old)
            else:
                temp.replace(path)
            _sync(path.parent)
        except OutputError as error:
            shutil.rmtree(temp, ignore_errors=True)
            raise OutputError(error.message.replace(str(temp), str(path)), remedy=error.remedy) from error
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise


def require_output_dir(path: str | Path, resume_marker: str, content: str = "") -> bool:
    """Make `path` a folder this run may write, and claim it by the file `resume_marker`.

    Returns True when the marker was there before: an earlier run of ours, to go on with. Otherwise the folder must
    be new or empty; the marker is then written with `content`. Leftover temporary files of a killed run are removed.

    Raises:
        OutputError: `path` is a file, is unwritable, or holds files that are not a run of ours.
    """
    path = Path(path)
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        entries = list(path.iterdir())
    leftovers = [entry for entry in entries if entry.name.startswith(TEMP_PREFIX)]
    resuming = (path / resume_marker).is_file()
    if not resuming and len(leftovers) < len(entries):
        example = next(entry.name for entry in entries if entry not in leftovers)
        raise OutputError(
            f"{path} already holds files that are not a thinkfast run (for example {example})",
            remedy="choose a new or empty folder with --out",
        )
    with output_errors(path):
        for entry in leftovers:
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        probe = path / f"{TEMP_PREFIX}probe"
        probe.touch()
        probe.unlink()
    if not resuming:
        atomic_write(path / resume_marker, content)
    return resuming


def _sync(path: Path) -> None:
    """Force `path` (a file, or a folder's list of names) to the disk, so that the rename never outlives the bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
