"""Worker processes: none outlives the process that started it, whichever signal ends that."""

from __future__ import annotations

import operator
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from thinkfast.data.workers import map_in_workers

SCRIPT = """
import os, signal, sys, time
from thinkfast.data.workers import map_in_workers

def work(seconds):
    print(os.getpid(), flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    map_in_workers(work, [300.0] * 9, 2)
"""


def gone(pid: int, seconds: float = 20.0) -> bool:
    """Whether a process ends within `seconds`; one that nobody waits for counts as ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile: the next signal finds nobody
            state = re.search(r"State:\s+(\w)", Path(f"/proc/{pid}/status").read_text())
            if state is not None and state[1] in "ZX":
                return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        parent.send_signal(number)
        if number != signal.SIGKILL:
            _, said = parent.communicate(timeout=60)  # and not after the 300 seconds of a job
            assert said.count("Traceback") == (number == signal.SIGINT), said
            assert "leaked" not in said
        try:
            assert all(gone(pid) for pid in pids)
        finally:
            for pid in pids:
                if not gone(pid, 0.1):
                    os.kill(pid, signal.SIGKILL)


def test_results_come_in_the_order_of_the_jobs() -> None:
    assert map_in_workers(abs, range(-9, 0), 2) == list(range(9, 0, -1))


def test_a_job_that_fails_ends_the_others() -> None:
    with pytest.raises(TypeError, match="bad operand"):
        map_in_workers(operator.call, [partial(abs, "x"), *[partial(time.sleep, 300.0)] * 3], 2)


LARGE = """
import time
from thinkfast.data.workers import map_in_workers

def work(number):
    if number == 0:
        time.sleep(1.0)
        raise ValueError("job 0")
    return bytes(100 << 20)

if __name__ == "__main__":
    try:
        map_in_workers(work, range(40), 3)
    except ValueError as error:
        print(error)
"""


def test_an_error_beside_large_results_on_their_way_does_not_hang(tmp_path: Path) -> None:
    script = tmp_path / "large.py"
    script.write_text(LARGE)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "job 0\n"
