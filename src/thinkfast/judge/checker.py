"""Is this answer equivalent to the gold answer? Yes, no, or not known; never a hang.

Why: keys decide most pairs (`equal`). The rest goes to math-verify in worker processes of our own: its alarm works in
the main thread only, its time-outs read as "wrong", and sympy can loop or eat memory inside one C call. A worker over
its time is killed and replaced, and the verdict is None. math-verify is optional: without it the undecided stay None
and `note` says so.

    with Checker() as checker: checker.check(r"\\frac{x+1}{2x+2}", "1/2")   # True
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from thinkfast.errors import InputError
from thinkfast.judge.canonical import canonical_key
from thinkfast.judge.equal import compare_keys
from thinkfast.judge.pool import START_SECONDS, State, Worker, readable

MAX_ASKED_CHARS = 400  # the longest gold answer of MATH has under 200; longer ones cost antlr seconds
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ(?:\s*\})?|°")
# No author writes these, and sympy would multiply them out: exponents past 999, towers of three, large factorials.
_HOPELESS = re.compile(r"\^\s*[{(]?\s*-?[0-9]{4}|\^[^^+=,]{1,20}\^[^^+=,]{1,20}\^|[0-9]{3}\s*!|!\s*!")
Pair = tuple[str, str]  # (answer, gold)


class Checker:
    """A pool of killable math-verify workers with a cache. Thread-safe; a context manager; workers start when needed.

    Arguments:
        workers: processes at most.
        seconds: time limit of one comparison.
        memory_mib: address space of one worker.
        remember: verdicts kept, least recently used dropped first.
        command: another worker program that speaks the protocol of `worker`; None for math-verify.

    Raises:
        InputError: an argument that is not positive.
    """

    def __init__(
        self,
        workers: int = 2,
        seconds: float = 3.0,
        memory_mib: int = 2048,
        *,
        remember: int = 65536,
        command: Sequence[str] | None = None,
    ) -> None:
        if workers < 1 or not seconds > 0 or memory_mib < 1 or remember < 1:
            raise InputError(
                f"a checker with workers={workers}, seconds={seconds}, memory_mib={memory_mib}, remember={remember}",
                remedy="give positive numbers, such as Checker(workers=2, seconds=3.0)",
            )
        self.note: str | None = None  # why undecided pairs stay undecided, for the caller to show once
        self.timeouts = 0
        self.crashes = 0
        self._count = workers
        self._seconds = seconds
        self._remember = remember
        self._known: OrderedDict[Pair, bool | None] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        self._pool: list[Worker] = []
        if command is None:
            script = Path(__file__).with_name("worker.py")
            cpu = 2 * seconds + 5
            command = [sys.executable, "-P", str(script), str(os.getpid()), str(cpu), str(memory_mib)]
            if importlib.util.find_spec("math_verify") is None:
                self.note = "math-verify is not installed, so answers that only algebra can compare stay unknown: "
                self.note += "pip install 'thinkfast[math]'"
        self._command = tuple(command)
        self._finalizer = weakref.finalize(self, _kill_all, self._pool, os.getpid())

    def check(self, answer: str, gold: str, *, seconds: float | None = None) -> bool | None:
        """Whether `answer` equals `gold`; None when not decided within the checker's or these `seconds`."""
        return self.check_many([(answer, gold)], seconds=seconds)[0]

    def check_many(self, pairs: Sequence[Pair], *, seconds: float | None = None) -> list[bool | None]:
        """Verdicts in the order of `pairs`, all workers busy; `seconds` limits the whole call."""
        until = time.monotonic() + seconds if seconds is not None else None
        keyed = [(canonical_key(answer), canonical_key(gold)) for answer, gold in pairs]
        verdicts: dict[Pair, bool | None] = {}
        asked: dict[Pair, Pair] = {}
        with self._lock:
            for keys, pair in zip(keyed, pairs, strict=True):
                if keys in verdicts or keys in asked:
                    continue
                verdict = compare_keys(*keys)
                if verdict is None and keys in self._known:
                    self._known.move_to_end(keys)
                    verdict = self._known[keys]
                elif verdict is None and self.note is None and all(map(_askable, pair)):
                    asked[keys] = (_in_radians(pair[0], keys[0]), _in_radians(pair[1], keys[1]))
                    continue
                verdicts[keys] = verdict
            if asked and not self._closed:
                verdicts |= self._ask(asked, until)
        return [verdicts.get(keys) for keys in keyed]

    def warm(self) -> None:
        """Start all workers now and wait until they are loaded, so that no check pays for it."""
        with self._lock:
            if self.note is None and not self._closed:
                self._hire(self._count)
                for worker in self._pool:
                    worker.poll(START_SECONDS)

    def pids(self) -> list[int]:
        """Process ids of the living workers."""
        return [worker.pid for worker in self._pool if worker.state is not State.DEAD]

    def close(self) -> None:
        """End all workers; checks afterwards use keys and memory only. Idempotent."""
        self._closed = True
        with self._lock:
            _kill_all(self._pool, os.getpid())
            self._finalizer.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the pool, under the lock ------------------------------------------------------------------------------

    def _ask(self, asked: dict[Pair, Pair], until: float | None) -> dict[Pair, bool | None]:
        waiting = list(asked.items())[::-1]
        running: dict[int, Pair] = {}  # pid -> keys
        verdicts: dict[Pair, bool | None] = {}
        strength = len(self._pool)
        try:
            while (waiting or running) and self.note is None and not self._closed:
                if until is not None and time.monotonic() >= until:
                    break
                self._hire(len(waiting) + len(running))
                for worker in self._pool:
                    if worker.state is State.IDLE and waiting:
                        keys, pair = waiting[-1]
                        if worker.send(*pair):  # else it had died idle, and the pair is not to blame
                            running[worker.pid] = keys
                            waiting.pop()
                self._collect(until, running, verdicts)
        finally:
            # past the caller's deadline, or an exception such as Ctrl-C: nobody will read these replies
            for worker in self._pool:
                if worker.state is State.BUSY:
                    worker.kill()
            if self.note is None and not self._closed:
                self._hire(max(strength, len(self._pool)))  # replacements load while nobody waits for them
        return verdicts

    def _hire(self, needed: int) -> None:
        self._pool[:] = [worker for worker in self._pool if worker.state is not State.DEAD]
        while len(self._pool) < min(needed, self._count):
            self._pool.append(Worker(self._command))

    def _collect(self, until: float | None, running: dict[int, Pair], verdicts: dict[Pair, bool | None]) -> None:
        """Wait for one event: replies, the end of a worker, a time limit, or the deadline."""
        active = [w for w in self._pool if w.state in (State.STARTING, State.BUSY)]
        limits = [(self._seconds if w.state is State.BUSY else START_SECONDS) - w.waited for w in active]
        if until is not None:
            limits.append(until - time.monotonic())
        ready = readable(active, min(limits, default=0.0))
        for worker in self._pool:
            starting = worker.state is State.STARTING
            verdict = worker.poll(0.0) if worker in ready else None
            late = worker.state is State.BUSY and worker.waited >= self._seconds
            stuck = worker.state is State.STARTING and worker.waited >= START_SECONDS
            if late or stuck:
                worker.kill()
                self.timeouts += late
            elif worker.state is State.DEAD:
                self.crashes += 1
            if starting and worker.state is State.DEAD:
                self.note = "the math-verify worker does not start, so some answers stay unknown: "
                self.note += "run python -c 'import math_verify', and give Checker more memory_mib"
            if worker.state in (State.IDLE, State.DEAD) and worker.pid in running:
                keys = running.pop(worker.pid)
                verdicts[keys] = verdict
                self._learn(keys, verdict)

    def _learn(self, keys: Pair, verdict: bool | None) -> None:
        self._known[keys] = verdict
        if len(self._known) > self._remember:
            self._known.popitem(last=False)


def _askable(answer: str) -> bool:
    """Short, not hopeless, and with balanced braces: math-verify would read `5} \\boxed{7` as 7."""
    if len(answer) > MAX_ASKED_CHARS or not answer.strip() or _HOPELESS.search(answer):
        return False
    depth = 0
    for c in answer.replace("\\{", "").replace("\\}", ""):
        depth += (c == "{") - (c == "}")
        if depth < 0:
            return False
    return depth == 0


def _in_radians(answer: str, key: str) -> str:
    """math-verify drops degree signs, also inside a sine; where the key kept one, spell it out. No full stops."""
    answer = answer.strip(" .,;")
    return _DEGREES.sub(r"\\frac{\\pi}{180}", answer) if "deg" in key else answer


def _kill_all(pool: list[Worker], owner: int) -> None:
    if os.getpid() == owner:  # a forked child inherits the list, not the right to kill
        for worker in pool:
            worker.kill()
        pool.clear()
