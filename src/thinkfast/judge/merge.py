"""Keys that mean the same: what canonical keys leave open goes to a checker beside the sampling, never in its way.

Why a thread: a checker may take seconds over one pair, or hang. Its verdicts are collected as they come and whatever is
still open at the deadline stays two answers; the engine never waits for it.

Usage: ``merger = Merger(checker); merger.seen("1/2", r"\\frac12"); merger.collect(); merger.root("(x+1)/(2x+2)")``.
"""

from __future__ import annotations

import queue
import threading

from thinkfast.judge.answer import Equivalence, compare_keys

MOST_PAIRS = 32  # questions on one key: against answers of many kinds a checker would never be done


class Merger:
    """Asks ``checker`` about one problem's keys, in a thread that ends with `close`."""

    def __init__(self, checker: Equivalence) -> None:
        self._checker = checker
        self._answers: dict[str, str] = {}
        self._parent: dict[str, str] = {}
        self._asked: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def seen(self, key: str, answer: str) -> None:
        """A ballot has this key; pairs that keys alone do not decide are asked, the older answer as the gold one."""
        if key in self._answers:
            return
        others = list(self._answers)[:MOST_PAIRS]
        self._answers[key] = answer  # before anything is asked: the thread looks it up
        for other in others:
            if compare_keys(key, other) is None:
                self._start()
                self._asked.put((key, other))

    def collect(self) -> bool:
        """Take in verdicts that have come; whether any joined two keys."""
        joined = False
        while not self._found.empty():
            one, other = map(self.root, self._found.get())
            if one != other:
                self._parent[one] = other
                joined = True
        return joined

    def root(self, key: str) -> str:
        """The key under which ``key`` is counted: the earliest that means the same."""
        while key in self._parent:
            key = self._parent[key]
        return key

    def close(self) -> None:
        """Ask no more. A checker that hangs is left behind in its daemon thread, with its own limit of seconds."""
        while not self._asked.empty():
            self._asked.get()
        self._asked.put(None)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="thinkfast-merge", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (pair := self._asked.get()) is not None:
            key, other = pair
            if self._checker.check(self._answers[key], self._answers[other]):
                self._found.put(pair)
