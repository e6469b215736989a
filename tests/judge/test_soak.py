"""Thousands of hostile chains: no hang, no leaked process, bounded memory."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import psutil
import pytest

from thinkfast.judge.answer import judge
from thinkfast.judge.checker import Checker

GOLDS = [
    "18", r"\frac{1}{2}", r"3\sqrt{5}", "(4,25)", "x^2+5x+4", r"[1,\infty)", r"\sin^2 y", "y = 2x - 13",
    r"\text{Friday}",
    r"\begin{pmatrix} 7 \\ 5 \end{pmatrix}", r"\tan 15^\circ", r"\log\left(\frac{2007}{2006}\right)", "1,2",
    r"\frac{1}{x+1}",
]  # fmt: skip
LIMIT_MIB = 1024


def hostile(rng: random.Random, sizes: list[int]) -> str:
    """One chain, ending in an answer made to hurt."""
    n = rng.choice(sizes)
    deep = rng.choice([5, 20, 300, 5000])
    answer = rng.choice(
        [
            lambda: r"\frac{1}{" * deep + str(n) + "}" * deep,
            lambda: r"\sqrt{" * deep + str(n) + "}" * deep,
            lambda: "(" * deep + "x" + ")" * deep,
            lambda: r"\left(" * deep + "x",
            lambda: f"{n}^{{{10**9}}}",
            lambda: f"10^{{10^{{{n}}}}}+x",
            lambda: f"x^{{{n}{'0' * 8}}}-{n}",
            lambda: f"(x+{n})^{{{10**n}}}",
            lambda: f"{n}^{{{n}^{{{n}^{{{n}}}}}}}",
            lambda: f"{10**n}!",
            lambda: f"{n}!!!!!!+x!",
            lambda: r"\binom{1000000}{" + "5" * n + "}",
            lambda: "x" * 50_000,
            lambda: "9" * 50_000,
            lambda: "1+" * 25_000 + "1",
            lambda: ",".join(str(rng.randint(0, 9)) for _ in range(25_000)),
            lambda: "\\" * 50_000,
            lambda: r"\text{" * 8000,
            lambda: "".join(rng.choice("\\{}[]()^_$%&#~ x1,") for _ in range(rng.choice([30, 300, 50_000]))),
            lambda: "".join(chr(rng.randint(1, 0x2FFF)) for _ in range(rng.choice([20, 400]))),
            lambda: r"\int_0^{\infty} e^{-x^" + str(n) + r"} \sin(x^" + str(n) + r") dx",
            lambda: r"\sum_{k=1}^{" + str(10**n) + r"} \frac{1}{k^" + str(n) + "}",
            lambda: r"\prod_{k=1}^{1000000} (x-k)",
            lambda: r"\begin{pmatrix}" + "&".join("x" * n) + r"\\" * deep + r"\end{pmatrix}",
            lambda: rf"\sin({n}^{{{n}^{{{n}}}}})",
            lambda: "0." + "0" * 10 ** min(n, 5),
            lambda: f"1/{'0' * n}",
            lambda: f"{n}}} \\boxed{{18",
            lambda: "\x00\ud800" + str(n),
        ]
    )()
    style = rng.randrange(5)
    return [
        f"So we get \\boxed{{{answer}}}.",
        f"Then $\\boxed{{{answer}}}$ and more {answer[:100]}",
        f"#### {answer}",
        f"The answer is {answer}",
        f"\\boxed{{{answer}",
    ][style]


def rss_mib(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def soak(chains: int, seed: int, sizes: list[int], golds: list[str]) -> None:
    pytest.importorskip("math_verify")
    rng = random.Random(seed)
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    worst = 0.0
    peak = 0.0
    with Checker(2, seconds=0.3, memory_mib=LIMIT_MIB) as checker:
        checker.warm()
        base = rss_mib(os.getpid())
        for _ in range(chains):
            begin = time.monotonic()
            verdict = judge(hostile(rng, sizes), rng.choice(golds), checker)
            worst = max(worst, time.monotonic() - begin)
            assert verdict.correct in (True, False, None)
            pids = checker.pids()
            assert len(pids) <= 2
            peak = max([peak, *map(rss_mib, pids)])
        growth = rss_mib(os.getpid()) - base
        assert checker.note is None
    assert worst < 20, f"one verdict took {worst:.1f} s"  # 0.3 s, and a fresh worker on a loaded machine
    assert peak < LIMIT_MIB
    assert growth < 200, f"the parent grew by {growth:.0f} MiB"
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before


def test_soak_quick() -> None:
    soak(300, seed=1, sizes=[3, 7], golds=GOLDS[::6])  # fewer kinds, for each hanging pair costs its time-out


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_soak_long() -> None:
    soak(5000, seed=2, sizes=list(range(2, 10)), golds=GOLDS)
