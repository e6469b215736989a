from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkfast.errors import InputError, OutputError, ProblemError
from thinkfast.jsonl import JsonlLog, read_jsonl

# A resumable writer: goes on after the last row it finds.
WRITER = """
import sys
from thinkfast.jsonl import JsonlLog
with JsonlLog(sys.argv[1]) as log:
    done = [row["i"] for row in log.rows()]
    assert done == list(range(len(done))), done
    print(len(done), flush=True)
    for i in range(len(done), int(sys.argv[2])):
        log.append({"i": i, "text": chr(97 + i % 26) * (i * 7919 % 500)})
"""


def start_writer(path: Path, count: int) -> tuple[subprocess.Popen[str], int]:
    """A running writer and the number of rows it found."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(count)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_killed_at_random_moments_the_log_equals_an_undisturbed_one(tmp_path: Path) -> None:
    rng = random.Random(0)
    count = 20_000
    killed, undisturbed = tmp_path / "killed.jsonl", tmp_path / "undisturbed.jsonl"
    found = []
    for _ in range(6):
        process, rows = start_writer(killed, count)
        time.sleep(rng.uniform(0.0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found.append(rows)
        with killed.open("ab") as file:  # and a torn end, which page-cache writes rarely leave by themselves
            file.write(b'{"i":' + b"9" * rng.randrange(40))
    assert any(0 < rows < count for rows in found), "no kill fell inside a run"
    for path in (killed, undisturbed):
        process, _ = start_writer(path, count)
        process.communicate()
        assert process.returncode == 0
    assert killed.read_bytes() == undisturbed.read_bytes()


@given(data=st.data(), texts=st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_cut_at_any_byte_the_log_keeps_its_whole_rows_and_goes_on(
    data: st.DataObject, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "log.jsonl"
    rows = [{"text": text} for text in texts]
    with JsonlLog(path) as log:
        for row in rows:
            log.append(row)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    # A row is whole as soon as its closing brace is there, newline or not.
    expected = sum(1 for end in range(len(whole)) if whole[end : end + 1] == b"\n" and end <= cut)
    assert len(list(read_jsonl(path, allow_torn_end=True))) == expected
    with JsonlLog(path) as log:
        assert list(log.rows()) == rows[:expected]
        for row in rows[expected:]:
            log.append(row)
    assert path.read_bytes() == whole


def test_a_torn_line_longer_than_the_search_block_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a":1}\n{"b":"' + b"x" * 200_000)
    with JsonlLog(path, fsync=True) as log:
        log.append({"c": 2})
    assert path.read_bytes() == b'{"a":1}\n{"c":2}\n'


@pytest.mark.parametrize("line", [b"{torn\n", b"[1]\n", b"\xff\xfe\n", b"\x00\x00\n"])
def test_damage_inside_is_named_by_file_and_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a":1}\n\n' + line + b'{"b":2}\n')
    with pytest.raises(OutputError, match=r"log.jsonl:3: not a JSON object"), JsonlLog(path) as log:
        list(log.rows())
    with pytest.raises(ProblemError, match=r"log.jsonl:3: .*\n  remedy: repair or delete line 3"):
        list(read_jsonl(path, error=ProblemError))


def test_a_users_file_may_lack_its_last_newline_but_not_its_last_brace(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text('{"a":1}\n{"b":2}')
    assert list(read_jsonl(path)) == [{"a": 1}, {"b": 2}]
    path.write_text('{"a":1}\n{"b":2')
    with pytest.raises(InputError, match="problems.jsonl:2"):
        list(read_jsonl(path))
    with pytest.raises(InputError, match="cannot read .*gone.jsonl: No such file"):
        list(read_jsonl(tmp_path / "gone.jsonl"))


def test_a_second_writer_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with JsonlLog(path), pytest.raises(OutputError, match="being written by another run"):
        JsonlLog(path)
    JsonlLog(path).close()


def test_a_disk_that_fills_up_mid_line_leaves_whole_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    real = os.write
    calls = 0

    def filling(descriptor: int, data: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            return real(descriptor, data[:5])
        raise OSError(28, "No space left on device")

    with JsonlLog(path) as log:
        log.append({"a": 1})
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", filling)
            with pytest.raises(OutputError, match="log.jsonl: the disk is full"):
                log.append({"b": 2})
        log.append({"c": 3})
    assert path.read_text() == '{"a":1}\n{"c":3}\n'


def test_nan_is_refused_before_it_reaches_the_file(tmp_path: Path) -> None:
    with JsonlLog(tmp_path / "log.jsonl") as log:
        with pytest.raises(ValueError, match="not JSON compliant"):
            log.append({"loss": float("nan")})
        assert list(log.rows()) == []


def test_any_text_comes_back(tmp_path: Path) -> None:
    row = {"text": "a\u2028b\n\ud800 é \x00"}
    with JsonlLog(tmp_path / "log.jsonl") as log:
        log.append(row)
        assert list(log.rows()) == [row]
    assert json.loads((tmp_path / "log.jsonl").read_bytes()) == row
