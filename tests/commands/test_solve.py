from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from thinkfast.cli import build_app
from thinkfast.commands._solveview import LiveView, PlainView, solve_view
from thinkfast.engine.request import Chain, SamplingParams
from thinkfast.engine.session import Stats
from thinkfast.judge.events import Event, Started
from thinkfast.judge.poll import Poll
from thinkfast.judge.tally import unbeatable

SCRIPT = Path(sys.executable).with_name("thinkfast")
CARDS = (
    "At the shop cards cost 18 dollars each and stones cost 18 dollars each. Ivy needs 2 cards and 3 stones. "
    "How many dollars does Ivy pay?"
)
ENOUGH = ("--seconds", "200", "--temperature", "0.3")


def thinkfast(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments], input=stdin)


def show(view: LiveView | PlainView, answers: list[str | None], n: int) -> None:
    """What `solve` would do with a model that says these answers."""
    poll = Poll(0, (1, 2), SamplingParams(n=n), unbeatable)
    poll.ask(n)
    events: list[Event] = [Started("toy", 1, n, 0.25, Stats(generated_tokens=1000))]
    for at, answer in enumerate(answers):
        text = f"[bold]so[/bold] \\boxed{{{answer}}}" if answer is not None else "hmm"
        events += poll.count(Chain("0", at, (3,) * 50, text, -1.0, None, "stop", 1.0, 2), 1.0 + at)
    with view:
        for event in events:
            view.event(event)
        view.finish(poll.solution("toy", 9.5, 20.0, None))


def screen(answers: list[str | None], n: int) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=90, color_system=None, highlight=False)
    view = solve_view(console, "How many [coins]?", 20.0, n)
    assert isinstance(view, LiveView)
    show(view, answers, n)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_end_with_the_answer() -> None:
    result = thinkfast("solve", CARDS, "-n", "4", *ENOUGH)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == "90"
    assert re.fullmatch(r" +[0-9.]+ s  tiny is loaded: up to 4 chains, 200 s in all", lines[0])
    assert re.fullmatch(r" +[0-9.]+ s  90 leads with 1 of 1 chain, [0-9]+% sure", lines[1])
    assert re.search(
        r"^tiny: (all 4 chains finished|decided after [34] of 4 chains).*, [0-9.]+ s", result.stdout, re.MULTILINE
    )
    assert re.search(r"^  90: [34] votes of [34] \(100%\)$", result.stdout, re.MULTILINE)
    assert "\\boxed{90}" in result.stdout
    assert "\x1b" not in result.stdout


def test_json_is_one_object_and_nothing_else() -> None:
    result = thinkfast("solve", "-", "-n", "2", "--json", *ENOUGH, stdin=CARDS + "\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    assert (found["answer"], found["n"], found["budget"], found["model"]) == ("90", 2, 200.0, "tiny")
    assert found["votes"][0]["answer"] == "90"
    assert re.sub(r"thinkfast: compiling .*\n", "", result.stderr) == ""


def test_help_says_what_the_seconds_leave_out() -> None:
    told = " ".join(thinkfast("solve", "--help").stdout.split())
    assert "What Python takes to start and import torch" in told
    assert "is not counted" in told


def test_no_answer_in_time_says_so() -> None:
    result = thinkfast("solve", CARDS, "-n", "2", "--seconds", "200", "--max-tokens", "4")
    assert result.exit_code == 0
    assert "all 2 chains finished, but no answer was found in them" in result.stdout
    assert result.stdout.splitlines()[-1] == "no answer"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([""], "the problem is empty"),
        ([CARDS, "--seconds", "0"], r"seconds is 0\.0"),
        ([CARDS, "--seconds", "-2"], r"seconds is -2\.0"),
        ([CARDS, "--seconds", "nan"], "seconds is nan"),
        ([CARDS, "-n", "0"], "n is 0"),
        ([CARDS, "--temperature", "-1"], "temperature is -1"),
        ([CARDS, "--model", "tinny"], "unknown model 'tinny'"),
        ([CARDS, "--model", "tinny", "--json"], "unknown model 'tinny'"),
        (["cards " * 5000], r"the problem has \d+ tokens"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], words: str) -> None:
    result = thinkfast("solve", *arguments)
    assert result.exit_code == 2
    assert re.search(words, result.stderr)
    assert "remedy: " in result.stderr
    assert result.stdout == ""


def test_the_live_view_draws_the_votes() -> None:
    shown = screen(["7", "9", "7", None, "7"], n=10)
    last = shown[shown.rindex("How many [coins]?") :]
    assert re.search(r"^ +7  ━+[╸╺ ━]* +3  60%", last, re.MULTILINE)
    assert re.search(r"^ +9  .* 1  20%", last, re.MULTILINE)
    assert re.search(r"^ +no answer  .* 1  20%", last, re.MULTILINE)
    assert "toy: time was up after 5 of 10 chains, 9.50 s, 250 tokens" in last
    assert "[bold]so[/bold] \\boxed{7}" in last  # a chain is text, not markup
    assert last.rstrip().splitlines()[-1].strip() == "7"


def test_the_live_view_sums_up_many_answers() -> None:
    shown = screen([str(i) for i in range(12)] + ["3"], n=20)
    last = shown[shown.rindex("How many [coins]?") :]
    assert re.search(r"^ +3  .* 2  15%", last, re.MULTILINE)
    assert re.search(r"^ +7 other answers  .* 7  54%", last, re.MULTILINE)


def test_the_live_view_without_an_answer() -> None:
    shown = screen([], n=3)
    last = shown[shown.rindex("How many [coins]?") :].rstrip().splitlines()
    assert last[-1].strip() == "no answer"
    assert "no answer yet" not in "\n".join(last)
    assert any("time was up before a chain finished" in line for line in last)


def test_while_it_runs_the_view_counts() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=90, color_system=None, highlight=False)
    view = LiveView(console, "How many?", 20.0, 8)
    assert "loading the model" in _drawn(view, console)
    stats = Stats(generated_tokens=1000)
    view.event(Started("toy", 1, 8, 0.25, stats))
    stats.generated_tokens += 500_000
    poll = Poll(0, (1, 2), SamplingParams(n=8), unbeatable)
    poll.ask(8)
    for event in poll.count(Chain("0", 0, (3,), "so \\boxed{7}", -1.0, None, "stop", 1.0, 2), 1.0):
        view.event(event)
    drawn = _drawn(view, console)
    assert re.search(r"toy +1 of 8 chains +(19\.\d|20\.0) s left +[\d,]{6,} tokens/s", drawn)
    for at in range(1, 5):
        for event in poll.count(Chain("0", at, (3,), "so \\boxed{7}", -1.0, None, "stop", 1.0, 2), 1.0):
            view.event(event)
    assert "decided" in _drawn(view, console)


def _drawn(view: LiveView, console: Console) -> str:
    with console.capture() as captured:
        console.print(view._render())
    return captured.get()


def test_in_a_terminal_it_is_live() -> None:
    leader, follower = pty.openpty()
    command = [SCRIPT, "solve", CARDS, "-n", "2", *ENOUGH]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        seen = b""
        try:
            while chunk := os.read(leader, 65536):
                seen += chunk
        except OSError:  # Linux: the other end is closed
            pass
    os.close(leader)
    text = seen.decode()
    assert process.returncode == 0
    assert "\x1b[?25l" in text  # the cursor hides while the view is live
    assert "\x1b[?25h" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert re.search(r"90  ━+ +2  100%", plain)
    assert plain.rstrip().splitlines()[-1].strip() == "90"
