"""Cleans a cache up after whoever started it, even after `kill -9`: a process of its own, run by its path.

It waits until its standard input closes, which the system does when the parent ends in whatever way. Then it ends the
processes of its group (a download), removes temporary entries, and lets go of the cache's lock, which it inherited:
so nobody else begins before all is clean.

Usage: ``python guard.py CACHE PREFIX``, with the lock's descriptor passed on.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path


def sweep(folder: Path, prefix: str, seconds: float = 5.0) -> None:
    """Remove the entries of ``folder`` that begin with ``prefix``; a writer that is ending may need a moment."""
    end = time.monotonic() + seconds
    while left := list(folder.glob(f"{prefix}*")):
        for entry in left:
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        if time.monotonic() > end:
            return
        time.sleep(0.02)


def main() -> None:
    """Wait, end the group, sweep."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGTERM)  # ours is a group of its own (see cache.py): this process and the download
    sweep(Path(sys.argv[1]), sys.argv[2])


if __name__ == "__main__":
    main()
