from __future__ import annotations

import os
from pathlib import Path

import pytest

from thinkfast.errors import OutputError
from thinkfast.files import (
    TEMP_PREFIX,
    atomic_dir,
    atomic_path,
    atomic_write,
    output_errors,
    require_file_place,
    require_output_dir,
)

needs_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    atomic_write(target, "old")
    atomic_write(target, b"new \xff")
    assert target.read_bytes() == b"new \xff"
    assert os.listdir(tmp_path) == ["results.json"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temp:
        assert temp.suffix == ".safetensors"
        temp.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == [target.name]


@pytest.mark.parametrize(
    ("number", "words"), [(28, "the disk is full"), (13, "permission denied"), (5, "Input/output error")]
)
def test_an_os_error_becomes_a_message_with_a_remedy(tmp_path: Path, number: int, words: str) -> None:
    with (
        pytest.raises(OutputError, match=f"cannot write {tmp_path}/x: {words}\n  remedy: ."),
        atomic_path(tmp_path / "x"),
    ):
        raise OSError(number, os.strerror(number))


def test_a_rust_librarys_os_error_is_recognised_and_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the disk is full"), atomic_path(tmp_path / "x"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="shapes"), atomic_path(tmp_path / "x"):
        raise RuntimeError("shapes")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_device_that_is_really_full(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the disk is full"), atomic_path(tmp_path / "x") as temp:
        temp.symlink_to("/dev/full")
        temp.write_text("x")
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a part of the path is a file"):
        atomic_write(tmp_path / "file" / "x.json", "{}")
    with pytest.raises(OutputError, match="a part of the path is a file|stands where a folder"):
        require_output_dir(tmp_path / "file", "run.json")
    with pytest.raises(OutputError, match="the folder does not exist"):
        atomic_write(tmp_path / "missing" / "x.json", "{}")


def test_atomic_dir_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "student"
    with pytest.raises(ZeroDivisionError), atomic_dir(target) as folder:
        (folder / "config.json").write_text("{}")
        _ = 1 / 0
    assert os.listdir(tmp_path) == []
    for content in ("first", "second"):
        with atomic_dir(target) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / f"{content}.txt").write_text(content)
    assert os.listdir(tmp_path) == ["student"]
    assert os.listdir(target / "sub") == ["second.txt"]


def test_an_output_folder_is_claimed_then_resumed(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "demo"
    assert require_output_dir(out, "run.json", '{"seed": 0}') is False
    assert (out / "run.json").read_text() == '{"seed": 0}'
    (out / "samples.jsonl").write_text("")
    (out / f"{TEMP_PREFIX}abc").write_text("left by a killed run")
    (out / f"{TEMP_PREFIX}dir").mkdir()
    assert require_output_dir(out, "run.json", "other") is True
    assert sorted(os.listdir(out)) == ["run.json", "samples.jsonl"]
    assert (out / "run.json").read_text() == '{"seed": 0}'


def test_somebody_elses_folder_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(OutputError, match=r"not a thinkfast run \(for example thesis.tex\)\n  remedy: .*--out"):
        require_output_dir(tmp_path, "run.json")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_kill_before_the_marker_leaves_a_usable_folder(tmp_path: Path) -> None:
    (tmp_path / f"{TEMP_PREFIX}abc").write_text("half a marker")
    assert require_output_dir(tmp_path, "run.json") is False
    assert os.listdir(tmp_path) == ["run.json"]


@needs_user
def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="permission denied"):
            require_output_dir(tmp_path, "run.json")
        with pytest.raises(OutputError, match="permission denied"):
            require_output_dir(tmp_path / "new", "run.json")
    finally:
        tmp_path.chmod(0o700)


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="is no file"):
        atomic_write(pipe, "x")
    assert pipe.is_fifo()


def test_a_place_is_tried_before_the_work(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("old")
    require_file_place(kept)
    require_file_place(tmp_path / "new.json")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text() == "old"
    with pytest.raises(OutputError, match="is a folder"):
        require_file_place(tmp_path)
    with pytest.raises(OutputError, match="nowhere"):
        require_file_place(tmp_path / "nowhere" / "x.json")


def test_a_full_disk_inside_a_folder_names_the_folder(tmp_path: Path) -> None:
    place = tmp_path / "model"
    with (
        pytest.raises(OutputError, match=r"cannot write \S*/model/weights: the disk is full") as caught,
        atomic_dir(place) as folder,
        output_errors(folder / "weights"),
    ):
        raise OSError(28, "No space left on device")
    assert "free some space" in caught.value.remedy
    assert not list(tmp_path.iterdir())
