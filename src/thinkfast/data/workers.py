"""Jobs in worker processes that end with the process that started them, in whatever way that ends.

Why: a process pool's workers hold both ends of their queues, so that none of them sees that its parent was killed:
they finish what is queued and then wait for ever. Here each waits on a pipe besides, whose other end only the parent
has and which the system closes with it. (Linux's death signal would not do: it follows the thread that started them.)
`judge.worker`, which may import nothing of thinkfast, has a watch of its own.

Usage: ``results = map_in_workers(function, jobs, workers=4)``
Workers are started with "spawn": a script that asks for them needs `if __name__ == "__main__":`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def map_in_workers(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> list[Result]:
    """`function` of every job, in the order of the jobs; at an error, or Ctrl-C, the workers end at once."""
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    with theirs, ours, ProcessPoolExecutor(workers, context, _end_with, (theirs,)) as executor:
        try:
            futures = [executor.submit(function, job) for job in jobs]
            return [future.result() for future in futures]
        except BaseException:
            # Else the executor would wait for what is queued. Its own map would cancel that first, and Python before
            # 3.12 fails at a cancelled job where a worker has ended.
            ours.close()
            raise


def _end_with(lifeline: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()


def _watch(lifeline: Connection) -> None:
    lifeline.poll(None)  # nothing is ever sent: it returns when nobody has the other end
    os._exit(1)
