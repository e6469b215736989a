"""Hub ids, without a hub: transformers' cache is laid out by hand, and the network is off (tests/conftest.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_files import parts_of, random_model

from thinkfast.errors import ModelError
from thinkfast.models.loading import load_model
from thinkfast.models.sources import hub
from thinkfast.models.sources.resolve import find_model

COMMIT, OLD = "0123456789abcdef" * 2 + "01234567", "fedcba9876543210" * 2 + "fedcba98"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def put(cache: Path, repo: str, commit: str, files: dict[str, Path], branch: str = "main") -> Path:
    """What the hub's client leaves behind after a download."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / branch).write_text(commit)
    for name, source in files.items():
        (snapshot / name).write_bytes(source.read_bytes())
    return snapshot


def test_a_cached_model_needs_no_network(hub_cache: Path, saved: Callable[..., Path]) -> None:
    folder = saved()
    files = {path.name: path for path in folder.iterdir()}
    snapshot = put(hub_cache, "org/model", COMMIT, files)
    put(hub_cache, "org/model", OLD, files, branch="v1")
    for name in ("org/model", "hub:org/model", f"org/model@{COMMIT}"):
        assert load_model(name).path.resolve() == snapshot.resolve()
    assert find_model("org/model@v1").name == OLD
    assert hub.cached_snapshot("org/model") == snapshot
    assert hub.cached_snapshot("org/other") is None


def test_a_gguf_file_of_a_repository(hub_cache: Path, cache: Path, tmp_path: Path) -> None:
    path = parts_of(random_model("qwen2")).write(tmp_path / "m.gguf")
    put(hub_cache, "org/model-GGUF", COMMIT, {"model.Q4_K_M.gguf": path})
    loaded = load_model("org/model-GGUF/model.Q4_K_M.gguf")
    assert loaded.spec.family == "qwen2"
    assert loaded.path.parent == cache


@pytest.mark.parametrize("name", ["org/absent", "org/absent@v2", "hub:org/absent", "org/absent-GGUF/m.gguf"])
def test_not_cached_and_no_network(name: str, hub_cache: Path, cache: Path) -> None:
    with pytest.raises(ModelError, match="not in the hub's cache") as caught:
        load_model(name)
    assert "HF_HUB_OFFLINE" in caught.value.remedy


def test_a_snapshot_without_safetensors(hub_cache: Path, saved: Callable[..., Path]) -> None:
    folder = saved()
    files = {path.name: path for path in folder.iterdir() if path.suffix != ".safetensors"}
    put(hub_cache, "org/old", COMMIT, files | {"pytorch_model.bin": folder / "config.json"})
    with pytest.raises(ModelError, match=r"model\.safetensors is missing") as caught:
        load_model("org/old")
    assert "save_pretrained" in caught.value.remedy


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("GatedRepoError", "is gated"),
        ("RepositoryNotFoundError", "the hub has no model 'org/model'"),
        ("RevisionNotFoundError", "no such revision"),
        ("HfHubHTTPError", "cannot fetch 'org/model'"),
    ],
)
def test_what_the_hub_answers(kind: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    def refuse(*args: object, **options: object) -> str:
        error = getattr(errors, kind)
        raise error.__new__(error, "no")  # made without the answer of a server that they otherwise carry

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ModelError, match=said) as caught:
        find_model("org/model")
    assert caught.value.remedy


def test_ids() -> None:
    assert hub.is_id("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert hub.is_id("a/b@refs/pr/1")
    assert not any(hub.is_id(text) for text in ("a", "a/b/c", "/a/b", "a/", "../b", "a b/c"))
    assert hub.gguf_of("a/b/sub/c.gguf@v1") == ("a/b", "sub/c.gguf", "v1")
    assert hub.gguf_of("a/c.gguf") is None
