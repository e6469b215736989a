"""One killable worker process, seen from the parent: start, ask, wait with a limit, kill.

Why not multiprocessing: `spawn` imports the user's `__main__` again, and its pools wait for hung workers. A pipe, a
process and SIGKILL are enough, and a worker sees the end of its input when its parent dies in any way.

    worker = Worker(command); worker.poll(START_SECONDS); worker.send("1", "1"); worker.poll(3); worker.kill()
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Sequence
from enum import Enum
from typing import IO

START_SECONDS = 120.0  # importing sympy takes 1-2 s on an idle machine; this is for a loaded one


class State(Enum):
    """STARTING: no "ready" yet. IDLE: may be asked. BUSY: a reply is due. DEAD: killed, closed or crashed."""

    STARTING = 0
    IDLE = 1
    BUSY = 2
    DEAD = 3


class Worker:
    """A process speaking JSON lines. Not thread-safe: its owner holds a lock."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self._buffer = b""
        self._since = time.monotonic()
        self.state = State.STARTING

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def waited(self) -> float:
        """Seconds since the process started or was last asked."""
        return time.monotonic() - self._since

    def fileno(self) -> int:
        """The reply pipe."""
        return self._out.fileno()

    def send(self, answer: str, gold: str) -> bool:
        """Ask an idle worker; False when it had died meanwhile, say, by the system's memory killer."""
        if self._process.poll() is not None:
            self.kill()
            return False
        line = json.dumps([answer, gold]).encode() + b"\n"  # ASCII: lone surrogates pass as escapes
        self._since = time.monotonic()
        self.state = State.BUSY
        try:
            view = memoryview(line)
            while view:
                view = view[os.write(self._in.fileno(), view) :]
        except OSError:
            self.kill()
            return False
        return True

    def poll(self, seconds: float) -> bool | None:
        """Wait up to `seconds` for the next line; the verdict it carries. Look at `state` to see what came."""
        until = time.monotonic() + seconds
        while self.state in (State.STARTING, State.BUSY):
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                self.state = State.IDLE
                if b"broken" in line:
                    self.kill()
                return _verdict(line)
            if not readable([self], until - time.monotonic()):
                return None
            data = os.read(self.fileno(), 65536)
            if not data:
                self.kill()
            self._buffer += data
        return None

    def kill(self) -> None:
        """End the process now and reap it; idempotent."""
        self.state = State.DEAD
        self._process.kill()
        self._process.wait()
        self._in.close()
        self._out.close()

    @property
    def _in(self) -> IO[bytes]:
        if self._process.stdin is None:
            raise RuntimeError("opened without a pipe")
        return self._process.stdin

    @property
    def _out(self) -> IO[bytes]:
        if self._process.stdout is None:
            raise RuntimeError("opened without a pipe")
        return self._process.stdout


def readable(workers: Sequence[Worker], seconds: float) -> list[Worker]:
    """Those of `workers` that have something to read, after at most `seconds`; poll has no limit of 1,024 files."""
    poll = select.poll()
    for worker in workers:
        poll.register(worker.fileno(), select.POLLIN)
    ready = {fd for fd, _ in poll.poll(max(seconds, 0.0) * 1000)}
    return [worker for worker in workers if worker.fileno() in ready]


def _verdict(line: bytes) -> bool | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, bool) else None
