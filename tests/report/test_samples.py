from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkfast.errors import InputError, OutputError
from thinkfast.report.samples import SAMPLES, UNITS, Row, SampleLog, Unit, read_rows


def row(sample: int, problem: str = "p", system: str = "s") -> Row:
    return Row(system, problem, sample, 3, "text \ud800 é", "1", "number:1", True, "stop", -1.5, 0.25 * sample)


def unit(first: int, rows: int, system: str = "s") -> Unit:
    return Unit(system, first, rows, rows, 0, 1.0, 5, 9, False, "sha", "sha")


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [row(0), row(1), Row("s", "q", 0, 0, "", None, None, None, "error", None, 0.5)]
    with SampleLog(tmp_path) as log:
        log.commit(rows, unit(0, 3))
    assert read_rows(tmp_path / SAMPLES) == rows
    with SampleLog(tmp_path) as log:
        assert log.units == [unit(0, 3)]


def full_log(folder: Path) -> tuple[bytes, bytes]:
    with SampleLog(folder) as log:
        log.commit([row(0), row(1)], unit(0, 2))
        log.commit([], unit(2, 0))
        log.commit([row(2)], unit(2, 1))
        log.commit([row(3), row(4)], unit(3, 2))
    return (folder / SAMPLES).read_bytes(), (folder / UNITS).read_bytes()


@given(units_kept=st.integers(0, 4), torn=st.integers(0, 40), ahead=st.integers(0, 400))
def test_a_kill_anywhere_leaves_whole_units(
    tmp_path_factory: pytest.TempPathFactory, units_kept: int, torn: int, ahead: int
) -> None:
    """Rows are written before their unit's line, so a kill leaves rows ahead of the units, the last line torn."""
    folder = tmp_path_factory.mktemp("log")
    samples, units = full_log(folder)
    lines = units.splitlines(keepends=True)
    part = lines[units_kept][: min(torn, len(lines[units_kept]) - 2)] if units_kept < len(lines) else b""
    (folder / UNITS).write_bytes(b"".join(lines[:units_kept]) + part)
    rows = sum(json.loads(line)["rows"] for line in lines[:units_kept])
    whole = b"".join(samples.splitlines(keepends=True)[:rows])
    (folder / SAMPLES).write_bytes(samples[: len(whole) + ahead])
    with SampleLog(folder) as log:
        assert len(log.units) == units_kept
    assert (folder / SAMPLES).read_bytes() == whole


def test_rows_lost_by_another_hand_are_an_error(tmp_path: Path) -> None:
    samples, _ = full_log(tmp_path)
    (tmp_path / SAMPLES).write_bytes(samples[:-1])
    with pytest.raises(OutputError, match="has 4 rows, but"):
        SampleLog(tmp_path)


def test_a_second_writer_is_told_so_before_anything_is_cut(tmp_path: Path) -> None:
    with SampleLog(tmp_path) as log:
        log.commit([row(0)], unit(0, 1))
        with (tmp_path / SAMPLES).open("ab") as other:
            other.write(b'{"half')
        with pytest.raises(OutputError, match="being written by another run"):
            SampleLog(tmp_path)
        assert (tmp_path / SAMPLES).read_bytes().endswith(b'{"half')


def test_logs_merge_unless_they_share_a_sample(tmp_path: Path) -> None:
    for name, system in (("a", "s"), ("b", "other")):
        (tmp_path / name).mkdir()
        with SampleLog(tmp_path / name) as log:
            log.commit([row(0, system=system)], unit(0, 1))
    a, b = tmp_path / "a" / SAMPLES, tmp_path / "b" / SAMPLES
    assert [each.system for each in read_rows(a, b)] == ["s", "other"]
    with pytest.raises(InputError, match="sample 0 of 'p' by 's' is there twice"):
        read_rows(a, a)


@pytest.mark.parametrize(("field", "value"), [("tokens", "3"), ("key", 1), ("correct", "yes"), ("seconds", None)])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, field: str, value: object) -> None:
    full_log(tmp_path)
    lines = (tmp_path / SAMPLES).read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), field: value})
    (tmp_path / SAMPLES).write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=f"samples.jsonl:2: '{field}'"):
        read_rows(tmp_path / SAMPLES)
