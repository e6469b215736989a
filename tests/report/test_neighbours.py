from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from thinkfast.report import neighbours
from thinkfast.report.neighbours import Processors


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_what_this_process_keeps_busy_is_told_apart_from_what_others_do() -> None:
    watch = Processors()
    spin(0.7)
    busy, _ = watch.shares()
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    watch = Processors()
    time.sleep(0.7)
    asleep, _ = watch.shares()
    other.kill()
    other.wait()
    assert busy is not None
    assert asleep is not None
    assert asleep < 0.1 < 0.3 < busy


def test_what_others_took_is_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours.os, "cpu_count", lambda: 4)
    for shares, taken in (((1.5, 2.0), 0.5), ((3.9, 0.2), 0.0), ((None, None), None), ((1.0, None), None)):
        monkeypatch.setattr(Processors, "shares", lambda self, shares=shares: shares)
        assert Processors().taken() == (None if taken is None else pytest.approx(taken))


def test_idle_processors_are_read_off_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(neighbours, "STAT", stat)
    monkeypatch.setattr(neighbours.os, "sysconf", lambda name: 100)
    stat.write_text("cpu  1000 0 200 5000 50 0 0 0 0 0\ncpu0 1 2 3 4\n")
    watch = Processors()
    time.sleep(0.6)
    stat.write_text("cpu  1060 0 200 5050 60 0 0 0 0 0\ncpu0 1 2 3 4\n")
    _, idle = watch.shares()
    assert idle is not None
    assert 0.3 < idle <= 1.0  # 0.6 s of them, in 0.6 s or a little more


@pytest.mark.parametrize("text", [None, "", "cpu", "cpu a b c d e f"])
def test_a_system_that_does_not_tell(text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    if text is not None:
        stat.write_text(text)
    monkeypatch.setattr(neighbours, "STAT", stat)
    monkeypatch.setattr(neighbours, "LEAST_SECONDS", 0.0)
    used, idle = Processors().shares()
    assert used is not None
    assert idle is None


def test_a_moment_says_nothing() -> None:
    assert Processors().shares() == (None, None)
