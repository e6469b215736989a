from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import torch

import thinkfast
from thinkfast import provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_facts_are_there_and_are_json() -> None:
    facts = provenance.provenance(seed=7)
    json.dumps(facts, allow_nan=False)
    assert facts["seed"] == 7
    machine = provenance.machine()
    assert isinstance(machine["cores"], int)
    assert machine["cores"] >= 1
    assert isinstance(machine["memory_gib"], float)
    assert machine["memory_gib"] > 0.1
    assert machine["cpu"]
    versions = provenance.versions()
    assert versions["torch"] == torch.__version__
    assert versions["thinkfast"] == thinkfast.__version__


def test_peak_memory_is_what_this_process_held() -> None:
    held = torch.ones(64 << 20, dtype=torch.uint8)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
    peak = provenance.peak_memory_gib()
    assert peak is not None
    assert held.numel() / 2**30 < resident * 0.99 < peak < 64


def test_commit_is_that_of_our_checkout_only(tmp_path: Path) -> None:
    package = tmp_path / "src" / "thinkfast"
    package.mkdir(parents=True)
    assert provenance.commit(package) is None  # no repository
    (package / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    assert provenance.commit(package) is None  # no commit yet
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert provenance.commit(package) == head
    (package / "__init__.py").write_text("changed")
    assert provenance.commit(package) == f"{head}-dirty"
    elsewhere = tmp_path / ".venv" / "thinkfast"
    elsewhere.mkdir(parents=True)
    assert provenance.commit(elsewhere) is None  # installed inside somebody else's repository


def test_source_names_the_tree_of_the_commit_that_has_this_code(tmp_path: Path) -> None:
    package = tmp_path / "src" / "thinkfast"
    (package / "kernels").mkdir(parents=True)
    (package / "kernels" / "a.py").write_text("a")
    (tmp_path / ".gitignore").write_text("*.pyc\n")
    assert provenance.source(package) is None  # no repository
    git(tmp_path, "init", "-q")
    early = provenance.source(package)  # before anything is committed
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    tree = git(tmp_path, "rev-parse", "HEAD:src/thinkfast")
    assert provenance.source(package) == tree == early
    (package / "left.pyc").write_text("no source")
    (tmp_path / "README").write_text("no source either")
    assert provenance.source(package) == tree
    (package / "kernels" / "b.py").write_text("b")  # untracked: it runs nevertheless
    stored = git(tmp_path, "count-objects")
    changed = provenance.source(package)
    assert changed != tree
    assert git(tmp_path, "count-objects") == stored
    assert git(tmp_path, "status", "--porcelain").split() == ["??", "README", "??", "src/thinkfast/kernels/b.py"]
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "y")
    assert git(tmp_path, "rev-parse", "HEAD:src/thinkfast") == changed
