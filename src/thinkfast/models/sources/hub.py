"""Models of a hub by their id, through huggingface_hub: transformers' own cache, and its rules for working offline.

HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and the rest mean what they mean there, and what transformers has fetched is not
fetched again.

Usage: ``snapshot("HuggingFaceTB/SmolLM2-135M-Instruct")``, ``file("org/name-GGUF", "name.Q4_K_M.gguf")``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from thinkfast.errors import ModelError

PREFIX = "hub:"
FILES = ("*.json", "*.jinja", "model*.safetensors")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?:@[\w./-]+)?")
_FILE = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)/(.+\.gguf)(?:@([\w./-]+))?")


def is_id(name: str) -> bool:
    """Whether ``name`` has the form ORG/NAME or ORG/NAME@REVISION."""
    return _ID.fullmatch(name) is not None


def gguf_of(name: str) -> tuple[str, str, str | None] | None:
    """(ORG/NAME, path of the file, revision) where ``name`` has the form ORG/NAME/FILE.gguf."""
    match = _FILE.fullmatch(name)
    return (match[1], match[2], match[3]) if match else None


def snapshot(name: str) -> Path:
    """The folder of a model's files, downloaded where the cache lacks them.

    Errors: ModelError where there is no such model, it is gated, or it is not cached and there is no network.
    """
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    return _fetched(name, lambda: snapshot_download(repo, revision=revision or None, allow_patterns=list(FILES)))


def file(repo: str, path: str, revision: str | None = None, kind: str = "model") -> Path:
    """One file of a repository; kind: "model" or "dataset". Errors: as for ``snapshot``."""
    from huggingface_hub import hf_hub_download

    name = f"{repo}/{path}"
    return _fetched(name, lambda: hf_hub_download(repo, path, revision=revision, repo_type=kind), kind)


def cached_snapshot(name: str) -> Path | None:
    """The folder of a model that is in the hub's cache already; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    repo, _, revision = name.partition("@")
    found = try_to_load_from_cache(repo, "config.json", revision=revision or None)
    return Path(found).parent if isinstance(found, str) else None


def _fetched(name: str, download: Callable[[], str], kind: str = "model") -> Path:
    from huggingface_hub import errors

    try:
        return Path(download())
    except errors.GatedRepoError as error:
        remedy = "accept its terms on its page, then `hf auth login` or set HF_TOKEN"
        raise ModelError(f"the hub's {kind} {name!r} is gated", remedy=remedy) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{name!r}: there is no such revision", remedy="check what stands behind the @") from error
    except errors.RepositoryNotFoundError as error:
        remedy = f"check the spelling; for a private {kind}, `hf auth login` or set HF_TOKEN"
        raise ModelError(f"the hub has no {kind} {name!r}, nor is it a folder here", remedy=remedy) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ModelError(
            f"{name!r} is no folder here and not in the hub's cache, and the hub cannot be asked (no network, or "
            "HF_HUB_OFFLINE is set)",
            remedy="check the path; to download, unset HF_HUB_OFFLINE and check the network",
        ) from error
    except (errors.EntryNotFoundError, errors.HfHubHTTPError, errors.HFValidationError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[:1]
        raise ModelError(f"cannot fetch {name!r} from the hub: {''.join(first)}", remedy="check the id") from error


def cached_models() -> list[tuple[str, Path]]:
    """(id, snapshot folder) of every model with a config.json in the hub's cache, whatever its kind."""
    from huggingface_hub import constants

    found = []
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        main = folder / "refs" / "main"
        snapshot = folder / "snapshots" / (main.read_text().strip() if main.is_file() else "none")
        if (snapshot / "config.json").is_file():
            found.append((folder.name.removeprefix("models--").replace("--", "/"), snapshot))
    return found
