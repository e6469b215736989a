"""The checker decides by hand-checked pairs, and survives workers that hang, crash, lie or never start."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from thinkfast.errors import InputError
from thinkfast.judge import worker as worker_script
from thinkfast.judge.answer import judge
from thinkfast.judge.checker import Checker
from thinkfast.judge.pool import State, Worker

PAIRS = [json.loads(line) for line in Path(__file__).with_name("pairs.jsonl").read_text().splitlines()]

# A worker without math-verify, whose behaviour the answer names.
ODD_WORKER = """
import json, os, sys, time
print('"ready"', flush=True)
for line in sys.stdin:
    answer, gold = json.loads(line)
    if "sleep" in answer: time.sleep(60)
    if "crash" in answer: os._exit(3)
    if "noise" in answer: print("}{ not JSON")
    elif "number" in answer: print("1")
    else: print(json.dumps("yes" in answer))
    sys.stdout.flush()
"""


def odd_checker(**options: float) -> Checker:
    return Checker(1, seconds=options.pop("seconds", 5.0), command=[sys.executable, "-c", ODD_WORKER], **options)


def gone(pid: int, within: float = 5.0) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until:
        status = Path(f"/proc/{pid}/status")
        try:
            if "State:\tZ" in status.read_text():
                return True  # dead; whoever adopted it has not reaped it yet
        except OSError:
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    pytest.importorskip("math_verify")
    with Checker(2, seconds=20.0) as real:
        yield real


def test_hand_checked_pairs(checker: Checker) -> None:
    assert len(PAIRS) >= 200
    assert len({(p["gold"], p["answer"]) for p in PAIRS}) == len(PAIRS)
    verdicts = checker.check_many([(p["answer"], p["gold"]) for p in PAIRS])
    wrong = [(p, v) for p, v in zip(PAIRS, verdicts, strict=True) if v is not p["equal"]]
    assert wrong == []


def test_judge_asks_the_checker(checker: Checker) -> None:
    assert judge(r"so \boxed{1-\cos^2 y}", r"\sin^2 y", checker).correct is True
    assert judge(r"so \boxed{1+\cos^2 y}", r"\sin^2 y", checker).correct is False


@pytest.mark.parametrize("answer", [r"5} \boxed{7", "{", "|x|" * 500, ""], ids=["escape", "open", "long", "empty"])
def test_what_is_never_sent(answer: str) -> None:
    with odd_checker() as checker:
        assert checker.check(answer, r"\sin y") is not True
        assert checker.pids() == []


def test_a_hung_worker_is_killed_and_replaced() -> None:
    with odd_checker(seconds=0.5) as checker:
        begin = time.monotonic()
        assert checker.check(r"\sin(s)+|sleep|", r"\sin y") is None
        assert time.monotonic() - begin < 5
        assert checker.timeouts == 1
        assert checker.check(r"|yes|", r"\sin y") is True
        assert len(checker.pids()) == 1


def test_one_hung_pair_does_not_cost_the_others() -> None:
    pairs = [("|yes|", r"\sin y"), ("|sleep|", r"\sin y"), ("|no|", r"\sin y"), ("|crash|", r"\sin y"), ("|yes2|", "x")]
    with odd_checker(seconds=0.5) as checker:
        assert checker.check_many(pairs) == [True, None, False, None, True]
        assert (checker.timeouts, checker.crashes) == (1, 1)


@pytest.mark.parametrize("answer", ["|noise|", "|number|"])
def test_a_reply_that_is_no_verdict_is_unknown(answer: str) -> None:
    with odd_checker() as checker:
        assert checker.check(answer, r"\sin y") is None
        assert checker.check("|yes|", r"\sin y") is True


def test_a_deadline_holds_although_the_checker_hangs() -> None:
    with odd_checker(seconds=30.0) as checker:
        checker.warm()
        begin = time.monotonic()
        assert checker.check("|sleep|", r"\sin y", seconds=0.2) is None
        assert time.monotonic() - begin < 1.0
        assert checker.check("|yes|", r"\sin y") is True


def test_a_worker_that_never_starts_is_noted_once() -> None:
    with Checker(2, command=[sys.executable, "-c", "raise SystemExit(1)"]) as checker:
        assert checker.check_many([("|a|", "x"), ("|b|", "x")]) == [None, None]
        assert checker.note is not None
        assert "does not start" in checker.note
        assert checker.check("5", "5") is True  # keys go on


def test_without_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with Checker() as checker:
        assert checker.note is not None
        assert "pip install" in checker.note
        assert checker.check(r"\sin x", r"\cos x") is None
        assert checker.check("0.5", "1/2") is True
        assert checker.check("0.5", "1/3") is False
        assert checker.pids() == []


def test_verdicts_are_remembered_within_bounds() -> None:
    with odd_checker(remember=2) as checker:
        assert checker.check("|yes|", "x") is True
        (pid,) = checker.pids()
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
        assert checker.check("| yes |", "x") is True  # same keys: nobody is asked
        assert checker.crashes == 0
        for name in ("a", "b", "c"):
            checker.check(f"|{name}|", "x")
        assert len(checker._known) == 2


def test_a_worker_that_died_idle_costs_no_verdict() -> None:
    with odd_checker() as checker:
        checker.warm()
        (pid,) = checker.pids()
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
        assert checker.check("|yes|", "x") is True


def test_threads_share_a_checker() -> None:
    with odd_checker() as checker:
        found: list[bool | None] = []

        def ask(i: int) -> None:
            found.append(checker.check(f"|yes{i}|", "x"))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [True] * 8


def test_no_process_is_left_after_close_or_an_exception() -> None:
    pids: list[int] = []
    with pytest.raises(KeyError), Checker(2, command=[sys.executable, "-c", ODD_WORKER]) as checker:
        checker.warm()
        pids = checker.pids()
        raise KeyError
    assert len(pids) == 2
    assert all(gone(pid, 0.5) for pid in pids)
    checker.close()
    assert checker.check("|yes|", "x") is None


def test_a_forgotten_checker_ends_its_workers() -> None:
    checker = odd_checker()
    checker.warm()
    (pid,) = checker.pids()
    del checker
    assert gone(pid)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_workers_end_when_their_parent_is_killed(busy: bool) -> None:
    pytest.importorskip("math_verify")
    ask = r"checker.check(r'\sin(9^{9^{9}})', r'\sin x')" if busy else "time.sleep(60)"
    code = f"""
import time
from thinkfast.judge.checker import Checker
checker = Checker(1, seconds=60, memory_mib=1024)
checker.warm()
print(*checker.pids(), flush=True)
{ask}
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        (pid,) = map(int, parent.stdout.readline().split())
        time.sleep(0.5)
        assert Path(f"/proc/{pid}").exists()
        parent.kill()
    assert gone(pid)


@pytest.mark.parametrize("bad", [{"workers": 0}, {"seconds": 0.0}, {"seconds": float("nan")}, {"memory_mib": 0}])
def test_senseless_arguments_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match="checker"):
        Checker(**bad)


# -- the worker itself -----------------------------------------------------------------------------------------


def test_a_worker_out_of_memory_says_so_and_ends() -> None:
    def decide(answer: str, gold: str) -> bool | None:
        if answer == "big":
            raise MemoryError
        if answer == "odd":
            raise ZeroDivisionError
        return True

    requests = io.StringIO("".join(json.dumps([a, ""]) + "\n" for a in ("fine", "odd", "big", "never")))
    replies = io.StringIO()
    worker_script.serve(requests, replies, decide, cpu_seconds=10_000)
    assert replies.getvalue().split() == ["true", "null", '"broken"']


def real_worker(decide: str, cpu_seconds: int, mib: int) -> str:
    """The program of a worker with all its limits, and another comparison than math-verify's."""
    load = f"worker.load_math_verify = lambda: {decide}"
    return f"from thinkfast.judge import worker; {load}; worker.main(['{os.getpid()}', '{cpu_seconds}', '{mib}'])"


def test_the_memory_of_a_worker_is_bounded() -> None:
    hog = "lambda answer, gold: len(bytearray(int(answer))) > 0"
    one = Worker([sys.executable, "-c", real_worker(hog, cpu_seconds=9, mib=400)])
    try:
        one.poll(60)
        one.send(str(100 << 20), "")
        assert one.poll(20) is True
        one.send(str(500 << 20), "")
        assert one.poll(20) is None
        assert one.state is State.DEAD  # its heap is not to be trusted any more
    finally:
        one.kill()
    assert gone(one.pid)


def test_a_worker_nobody_kills_stops_after_its_seconds_of_cpu() -> None:
    endless = "lambda answer, gold: answer == 'go' and 9**9**9 > 0"  # one C call
    one = Worker([sys.executable, "-c", real_worker(endless, cpu_seconds=1, mib=2000)])
    try:
        one.poll(60)
        one.send("go", "")
        one.poll(30)
        assert one.state is State.DEAD
    finally:
        one.kill()
