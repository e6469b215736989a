"""Commands of the README and docs/ work: blocks marked `<!-- ci -->` on the line before are run, in order, those of a
page in one temp folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^<!-- ci( slow)? -->\n```(console|bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def script_of(kind: str, body: str) -> str:
    """Shell text of a block; in a console block only `$ ` lines, and their `\\` or `> ` continuations, are commands."""
    if kind == "bash":
        return body
    if kind == "python":
        return f"python - <<'PYTHON'\n{body}PYTHON\n"
    lines: list[str] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            lines.append(line[2:])
        elif lines and lines[-1].endswith("\\"):
            lines.append(line.removeprefix("> "))
    return "\n".join(lines) + "\n"


def blocks(text: str) -> list[tuple[int, bool, str]]:
    """(line, slow, script) of each marked block."""
    return [
        (text.count("\n", 0, match.start()) + 1, bool(match[1]), script_of(match[2], match[3]))
        for match in BLOCK.finditer(text)
    ]


def run_script(script: str, folder: Path) -> None:
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "COLUMNS": "120",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, f"{script}\n--- stdout\n{done.stdout[-2000:]}\n--- stderr\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    return {page: tmp_path_factory.mktemp(page.stem) for page in PAGES}


@pytest.mark.parametrize(
    ("page", "script"),
    [
        pytest.param(page, script, id=f"{page.stem}-line{line}", marks=[pytest.mark.slow] if slow else [])
        for page in PAGES
        for line, slow, script in blocks(page.read_text())
    ],
)
def test_block(page: Path, script: str, folders: dict[Path, Path]) -> None:
    run_script(script, folders[page])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_marker_has_its_block(page: Path) -> None:
    text = page.read_text()
    found = blocks(text)
    assert len(re.findall(r"^<!-- ci\b.*-->", text, re.MULTILINE)) == len(found)
    assert all("thinkfast" in script for _, _, script in found)  # a block without a command would always pass


SAMPLE = """
<!-- ci -->
```console
$ echo one \\
>   two
one two
$ test "$HOME" = "$PWD"
```

```bash
exit 1
```

<!-- ci slow -->
```bash
false | true
```
"""


def test_blocks_are_found_and_a_failing_one_fails(tmp_path: Path) -> None:
    first, second = blocks(SAMPLE)
    assert first == (2, False, 'echo one \\\n  two\ntest "$HOME" = "$PWD"\n')
    assert second[1]
    run_script(first[2], tmp_path)
    with pytest.raises(AssertionError, match="false"):
        run_script(second[2], tmp_path)
