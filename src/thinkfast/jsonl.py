"""Append-only JSON lines that survive `kill -9`: the log is always whole lines, in the order they were written.

Why: every figure is redrawn from such a log and every killed run goes on from one. A line is one `write` call; what a
kill leaves of a torn last line is cut off at the next open, and the row it would have held is simply made again.

    with JsonlLog(out / "samples.jsonl") as log: done = {row["sample"] for row in log.rows()}; log.append(row)
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from thinkfast.errors import InputError, OutputError, ThinkfastError
from thinkfast.files import output_errors


def read_jsonl(
    path: str | Path, *, allow_torn_end: bool = False, error: type[ThinkfastError] = InputError
) -> Iterator[dict[str, Any]]:
    """Yield the JSON object of each line; blank lines are skipped.

    Args:
        path: the file.
        allow_torn_end: leave out an unfinished last line, as found in the log of a run that was killed or still runs.
        error: the error class to raise.

    Raises:
        error: the file cannot be read, or a line is not a JSON object; the message names file:line.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = _parse(line)
                if row is None and allow_torn_end and not line.endswith(b"\n"):
                    return
                if row is None:
                    shown = line[:60].decode(errors="replace").strip()
                    raise error(
                        f"{path}:{number}: not a JSON object: {shown!r}",
                        remedy=f"repair or delete line {number} of {path.name}",
                    )
                yield row
    except OSError as failure:
        raise error(f"cannot read {path}: {failure.strerror}", remedy="check the path and its permissions") from failure


class JsonlLog:
    """One writer's log: opens (repairing a torn end), appends whole lines, reads back.

    The file is locked while open, so that a second run in the same folder is told so instead of interleaving rows.
    Floats must be finite: NaN is no JSON, and a NaN loss should have stopped its stage already.

    Args:
        path: the log file, created when missing; its folder must exist.
        fsync: force each row to the disk. A kill needs no fsync, only a power cut does.
    """

    def __init__(self, path: str | Path, *, fsync: bool = False) -> None:
        self.path = Path(path)
        self._fsync = fsync
        with output_errors(self.path):
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            self._lock()
            with output_errors(self.path):
                self._size = self._repair()
        except BaseException:
            self.close()
            raise

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row as one line; after an OutputError the log still ends with the row before it."""
        # ASCII output: whatever a model wrote, lone surrogates included, encodes and decodes to the same string.
        line = json.dumps(row, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        with output_errors(self.path):
            try:
                left = memoryview(line)
                while left:
                    left = left[os.write(self._descriptor, left) :]
            except OSError:
                os.ftruncate(self._descriptor, self._size)  # a disk that fills up mid-line leaves no half row
                raise
            self._size += len(line)
            if self._fsync:
                os.fsync(self._descriptor)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield all rows from the first; an OutputError names file:line where the log was damaged by another hand."""
        return read_jsonl(self.path, allow_torn_end=True, error=OutputError)

    def close(self) -> None:
        """Release file and lock; calling it again does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as busy:
            raise OutputError(
                f"{self.path} is being written by another run",
                remedy="wait for that run to end, or choose another --out",
            ) from busy
        except OSError:
            pass  # file systems without locks (some network mounts) still take appends; the guard is a courtesy

    def _repair(self) -> int:
        """Cut off, or when only its newline is missing complete, an unfinished last line; returns the size in bytes."""
        size = os.fstat(self._descriptor).st_size
        tail, start = b"", size
        while start > 0 and b"\n" not in tail:
            block = min(1 << 16, start)
            start -= block
            tail = os.pread(self._descriptor, block, start) + tail
        torn = tail[tail.rfind(b"\n") + 1 :]
        if not torn:
            return size
        if _parse(torn) is not None:
            return size + os.write(self._descriptor, b"\n")
        os.ftruncate(self._descriptor, size - len(torn))
        return size - len(torn)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
