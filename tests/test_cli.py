from __future__ import annotations

import importlib
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

from thinkfast import commands
from thinkfast.cli import build_app

SCRIPT = Path(sys.executable).with_name("thinkfast")
VERB = '''
import time
from typing import Annotated
import typer
from thinkfast.errors import InputError

ORDER = {order}
RESUMES = "the last count" if {order} == 1 else ""
EXAMPLES = """
thinkfast {name} 3              # three [of them]
thinkfast {name} 3 --loud
"""

def run(count: Annotated[int, typer.Argument(help="How many.")], loud: bool = False) -> None:
    """Do {name} things."""
    if count < 0:
        raise InputError(f"count is {{count}}, [it] must be positive: " + "x" * 200, remedy="pass a count like 3")
    if count == 99:
        raise KeyboardInterrupt
    if count == 77:
        _ = 1 / 0
    print("done", count)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    name = re.sub(r"\W", "_", f"verbs_{request.node.name}")
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "_helper.py").write_text("raise RuntimeError('not a verb')")
    (tmp_path / name / "a_late.py").write_text(VERB.format(name="a-late", order=2))
    (tmp_path / name / "early.py").write_text(VERB.format(name="early", order=1))
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module(name)


def test_verbs_are_found_ordered_and_taught_by_example(package: ModuleType) -> None:
    app = build_app(package)
    top = CliRunner().invoke(app, ["--help"])
    assert top.exit_code == 0
    assert top.output.index("early") < top.output.index("a-late")
    verb = CliRunner().invoke(app, ["a-late", "-h"])
    assert "Do a-late things." in verb.output
    assert re.search(r"thinkfast a-late 3\s+# three \[of them\]\s*\n\s*\n?\s*thinkfast a-late 3 --loud", verb.output)


@pytest.mark.parametrize(
    ("count", "code", "words"),
    [
        ("3", 0, "done 3"),
        ("-1", 2, r"error: count is -1, \[it\] must be positive: x{200}\n  remedy: pass a count like 3"),
        ("99", 130, "interrupted. Run the same command again: it goes on from the last count."),
        ("three", 2, r"(?i)invalid value for .*count"),
    ],
)
def test_exit_codes_and_messages(package: ModuleType, count: str, code: int, words: str) -> None:
    result = CliRunner().invoke(build_app(package), ["early", "--", count])
    assert result.exit_code == code
    assert re.search(words, result.stdout if code == 0 else result.stderr)
    assert "Traceback" not in result.output


def test_what_would_begin_anew_says_no_more_than_that_it_was_interrupted(package: ModuleType) -> None:
    result = CliRunner().invoke(build_app(package), ["a-late", "99"])
    assert result.exit_code == 130
    assert result.stderr.strip() == "interrupted."


def test_a_bug_keeps_its_traceback(package: ModuleType) -> None:
    result = CliRunner().invoke(build_app(package), ["early", "77"])
    assert isinstance(result.exception, ZeroDivisionError)


def sleeping(folder: Path, wait: str, code: str) -> subprocess.Popen[str]:
    """A process that runs ``code`` with a verb that does ``wait``, once that has begun."""
    (folder / "verbs").mkdir()
    (folder / "verbs" / "__init__.py").write_text("")
    body = VERB.format(name="sleep", order=1).replace('print("done", count)', wait)
    (folder / "verbs" / "sleep.py").write_text(body)
    process = subprocess.Popen(
        [sys.executable, "-c", code, "sleep", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    return process


def test_ctrl_c_in_a_real_process_exits_130(tmp_path: Path) -> None:
    code = "import verbs; from thinkfast.cli import build_app; build_app(verbs)()"
    process = sleeping(tmp_path, "print('on', flush=True); time.sleep(60)", code)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Run the same command again" in stderr
    assert "Traceback" not in stderr


def test_sigterm_ends_a_verb_in_order_and_without_a_word(tmp_path: Path) -> None:
    wait = "try:\n        print('on', flush=True); time.sleep(60)\n    finally:\n        print('cleared', flush=True)"
    code = "import verbs; from thinkfast import cli; cli.build_app.__defaults__ = (verbs,); cli.main()"
    process = sleeping(tmp_path, wait, code)
    process.terminate()
    assert process.communicate(timeout=20) == ("cleared\n", "")
    assert process.returncode == 143


def test_the_script_answers_version_and_bad_verbs() -> None:
    done = subprocess.run([SCRIPT, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "thinkfast 0.1.0\n")
    done = subprocess.run([SCRIPT, "slove"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "slove" in done.stderr


def test_help_is_fast_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from thinkfast.cli import build_app; build_app();"
        "print(sorted({'torch', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    seconds = []
    for _ in range(3):
        # CPU seconds: a busy machine must not fail it.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([SCRIPT, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1.0


def test_every_shipped_verb_follows_the_convention() -> None:
    app = build_app(commands)
    group = typer.main.get_command(app)
    for verb in group.commands:  # type: ignore[attr-defined]
        module = importlib.import_module(f"thinkfast.commands.{verb.replace('-', '_')}")
        assert module.run.__doc__, f"{verb} needs a docstring: it is the help"
        assert f"thinkfast {verb}" in module.EXAMPLES
        assert CliRunner().invoke(app, [verb, "--help"]).exit_code == 0
