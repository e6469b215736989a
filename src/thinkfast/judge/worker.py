"""The process in which math-verify runs, so that it can be killed: started by `checker`, never imported by it.

Why: sympy may loop for hours or ask for all memory inside one C call, where no alarm and no thread can stop it. This
file runs as a script with nothing of thinkfast imported. One JSON line in (`[answer, gold]`), one out (true, false,
null). It ends when its input closes, when its parent is gone, when a request has used more than its CPU seconds, or
when memory runs out.

    python -P worker.py <parent pid> <CPU seconds per request> <memory in MiB>   # -P: judge/ must not shadow modules
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import IO

BROKEN = "broken"
_PARENT_POLL_SECONDS = 0.5
_FIRST = (
    (r"\sin^2 x", r"1-\cos^2 x"),
    (r"\log 2", r"\frac{x+1}{2}"),
    ("(1,2]", "[1,2]"),
)  # sympy's first calls are slow


def serve(requests: IO[str], replies: IO[str], decide: Callable[[str, str], bool | None], cpu_seconds: float) -> None:
    """Answer requests until the input ends; out of memory, reply "broken" and end: the heap is not to be trusted."""
    for line in requests:
        _allow_cpu(cpu_seconds)
        verdict: bool | str | None
        try:
            answer, gold = json.loads(line)
            verdict = decide(answer, gold)
        except MemoryError:
            verdict = BROKEN
        except Exception:  # noqa: BLE001 - whatever a parser raises on hostile input means "not decided"
            verdict = None
        replies.write(json.dumps(verdict) + "\n")
        replies.flush()
        if verdict == BROKEN:
            return


def load_math_verify() -> Callable[[str, str], bool | None]:
    """The comparison: True, False, or None when either side cannot be parsed; raises what math-verify raises."""
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def read(answer: str) -> list[object]:
        found: list[object] = parse(
            f"\\boxed{{{answer}}}", config, fallback_mode="no_fallback", parsing_timeout=None, raise_on_error=True
        )
        return found

    def decide(answer: str, gold: str) -> bool | None:
        wanted = read(gold)
        found = read(answer) if wanted else []
        if not wanted or not found:
            return None
        return bool(verify(wanted, found, timeout_seconds=None, raise_on_error=True))

    return decide


def _allow_cpu(seconds: float) -> None:
    """A limit that the kernel enforces even inside one endless C call, when nobody is left to kill this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _limit_memory(mib: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = mib << 20
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_SECONDS)
    os._exit(0)


def main(arguments: list[str]) -> None:
    """Set the limits, load, say "ready", serve."""
    parent, cpu_seconds, mib = int(arguments[0]), float(arguments[1]), int(arguments[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes us
    # sympy may print: keep the reply channel to ourselves and send everything else to /dev/null
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    _limit_memory(mib)
    decide = load_math_verify()
    for answer, gold in _FIRST:
        with contextlib.suppress(Exception):
            decide(answer, gold)
    replies.write('"ready"\n')
    replies.flush()
    serve(sys.stdin, replies, decide, cpu_seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
