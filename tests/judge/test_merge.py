from __future__ import annotations

import threading
import time

from thinkfast.judge.merge import Merger

SAME = "(x+1)/(2*x+2)"


class Algebra:
    """Knows one equation; ``gate`` holds its answers back."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.asked: list[tuple[str, str]] = []

    def check(self, answer: str, gold: str) -> bool | None:
        self.asked.append((answer, gold))
        self.gate.wait(10)
        return {answer, gold} == {"half", "odd half"}


def collected(merger: Merger) -> bool:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        if merger.collect():
            return True
        time.sleep(0.001)
    return False


def test_verdicts_come_beside_the_sampling_and_join_keys() -> None:
    algebra = Algebra()
    merger = Merger(algebra)
    began = time.monotonic()
    merger.seen("1/2", "half")
    merger.seen(SAME, "odd half")
    merger.seen(SAME, "odd half")
    assert time.monotonic() - began < 1  # though the checker has not answered
    assert not merger.collect()
    assert merger.root(SAME) == SAME
    algebra.gate.set()
    assert collected(merger)
    assert merger.root(SAME) == merger.root("1/2") == "1/2"
    assert algebra.asked == [("odd half", "half")]
    assert not merger.collect()
    merger.close()


def test_keys_that_decide_are_never_asked() -> None:
    algebra = Algebra()
    merger = Merger(algebra)
    for key in ("1", "2", "1/3", "text:blue"):
        merger.seen(key, key)
    assert merger._thread is None
    merger.close()


def test_closing_does_not_wait_for_a_checker_that_hangs() -> None:
    merger = Merger(Algebra())
    merger.seen("1/2", "half")
    merger.seen(SAME, "odd half")
    began = time.monotonic()
    merger.close()
    assert time.monotonic() - began < 1
