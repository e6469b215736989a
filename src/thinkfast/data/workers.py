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
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

GRACE = 5.0  # seconds that a result has to get to the parent


class _Duty:
    """What a worker process is at. A job may be broken off; a result on its way may not, or a parent that lives would
    read the rest of it for ever.
    """

    lock = threading.Lock()
    working = False


def map_in_workers(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> list[Result]:
    """`function` of every job, in the order of the jobs; at an error, or Ctrl-C, the workers end at once."""
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    with theirs, ours, ProcessPoolExecutor(workers, context, _end_with, (theirs,)) as executor:
        try:
            futures = [executor.submit(_work, function, job) for job in jobs]
            return [future.result() for future in futures]
        except BaseException:
            # Else the executor would wait for what is queued. Its own map would cancel that first, and Python before
            # 3.12 fails at a cancelled job where a worker has ended.
            ours.close()
            raise


def _end_with(lifeline: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()


def _work(function: Callable[[Job], Result], job: Job) -> Result:
    with _Duty.lock:
        _Duty.working = True
    try:
        return function(job)
    finally:
        with _Duty.lock:
            _Duty.working = False


def _watch(lifeline: Connection) -> None:
    lifeline.poll(None)  # nothing is ever sent: it returns when nobody has the other end
    with _Duty.lock:  # and no further job begins
        if not _Duty.working:
            time.sleep(GRACE)
        os._exit(1)
