"""What a name may be, and that a name which is nothing says so without asking a network."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_files import parts_of, random_model

from thinkfast.errors import ModelError
from thinkfast.models.loading import load_model
from thinkfast.models.sources.cache import cache_root
from thinkfast.models.sources.catalogue import ASSETS
from thinkfast.models.sources.resolve import find_cached, find_model, kept_models


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*args: object, **options: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", ask)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", ask)


def test_embedded_and_folders(saved: Callable[..., Path]) -> None:
    assert find_model("tiny") == ASSETS / "tiny"
    folder = saved()
    assert find_model(folder) == find_model(str(folder)) == folder


def test_a_gguf_file_is_converted_once_wherever_it_lies(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = parts_of(random_model("qwen3")).write(tmp_path / "My model (1).Q8_0.gguf")
    first = load_model(path)
    assert first.path.parent == cache
    assert first.spec.qk_norm
    assert "once" in capsys.readouterr().err
    moved = path.rename(tmp_path / "other.gguf")
    assert load_model(str(moved)).path == first.path
    assert capsys.readouterr().err == ""
    (kept,) = kept_models()
    assert (kept.path, kept.source) == (first.path, str(path))
    assert kept.bytes > 100_000
    changed = parts_of(random_model("qwen3", seed=1)).write(tmp_path / "other.gguf")
    assert load_model(changed).path != first.path


def test_the_cache_goes_where_it_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache == cache_root() / "models"
    monkeypatch.delenv("THINKFAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert cache_root() == cache / "thinkfast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path("~/.cache/thinkfast").expanduser()


def test_a_copy_that_lost_its_manifest_is_made_again(cache: Path, tmp_path: Path) -> None:
    path = parts_of(random_model("llama")).write(tmp_path / "m.gguf")
    folder = find_model(path)
    (folder / "thinkfast.json").unlink()
    (folder / "model.safetensors").write_bytes(b"half")
    assert load_model(path).path == folder


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smollm", r"unknown model 'smollm'.*\n.*did you mean 'smollm2'"),
        ("qwen-0.5b", r"did you mean 'qwen0\.5b'"),
        ("gpt-9", r"unknown model 'gpt-9'.*\n.*random:SHAPE \(for bench\)"),
        ("random:llama-3.2-1b/pure-d16", r"has random weights and no checkpoint.*\n.*thinkfast bench"),
        ("./runs/mine", "there is no ./runs/mine"),
        ("/no/such/place", "there is no /no/such/place"),
        ("src/typo", "there is no src/typo"),
        ("a/b/c", "there is no a/b/c"),
        ("model.gguf", "unknown model 'model.gguf'"),
        ("~/m.gguf", "there is no ~/m.gguf"),
        ("hub:one", "is no hub id"),
        ("pypi:one", "does not pin a version"),
        ("", "is no|has no config|unknown"),
    ],
)
def test_names_that_are_nothing(name: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        find_model(name)
    assert re.search(said, str(caught.value))


def test_files_and_folders_that_are_no_model(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match=r"notes\.txt is not a GGUF file"):
        find_model(tmp_path / "notes.txt")
    assert not any(path.name.startswith(".thinkfast") for path in cache.iterdir())
    parts_of(random_model("llama")).write(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=r"has no config\.json") as caught:
        find_model(tmp_path)
    assert str(tmp_path / "m.gguf") in caught.value.remedy


def test_nothing_is_cached_at_first(cache: Path) -> None:
    assert find_cached("smollm2") is None
    assert kept_models() == []
