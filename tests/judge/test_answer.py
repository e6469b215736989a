"""Which answer a chain states, and the verdict where keys decide."""

from __future__ import annotations

import time

import pytest

from thinkfast.judge.answer import Verdict, extract_answer, judge
from thinkfast.judge.equal import compare_keys


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"first \boxed{5}, no: \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"$\boxed{\left\{1,2\right\}}$", r"\left\{1,2\right\}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        (r"\fbox{7} and more", "7"),
        (r"so $\boxed 5$ it is", "5"),
        (r"\boxed\frac12$", r"\frac12"),
        (r"\boxed{3}, then cut at \boxed{4", "3"),
        (r"\boxed{} but the answer is 6.", "6"),
        (r"#### 4" + "\n" + r"\boxed{9}" + "\n#### 5", "9"),
        ("She has 3.\n#### 1,234\n", "1,234"),
        ("The answer is 18.", "18"),
        ("The answer is 3.5. Or so.", "3.5"),
        ("**Answer:** 42", "42"),
        ("The final answer is:\n\n$$x=5$$", "x=5"),
        ("Thus the answer is that she has 18 apples left.", "18"),
        ("Answer: no", "no"),
        ("so she pays $3,000.50 for 2", "2"),
        ("she pays $3,000.50.", "3,000.50"),
        ("the difference 3-5", "5"),
        ("it falls to -5", "-5"),
        ("it is 3/4 of it", "3/4"),
        ("nothing at all", None),
        ("", None),
    ],
)
def test_extract_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_the_last_number_can_be_switched_off() -> None:
    assert extract_answer("then 3 + 4 = 7 and", last_number=False) is None
    assert extract_answer(r"\boxed{7}", last_number=False) == "7"


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 7000, "{" * 50_000, r"\boxed{" * 3500 + "}" * 3500, "answer is " * 5000, "1," * 25_000,
        "####\n" * 10_000,
        "$" * 50_000, "-" * 50_000, "1,111" * 10_000, " " * 50_000, "answer" + " " * 50_000, "\\" * 50_001,
        "#### " + r"\frac{" * 8000, r"\boxed{" + "(" * 49_000 + "}", "answer is" + "\n" * 50_000, "}" * 50_000,
        "." * 50_000,
        "#" * 50_000, r"\boxed " * 7000, "answer:" * 7000, "**" * 25_000, "9" * 50_000,
    ],
    ids=lambda text: text[:12].encode("unicode_escape").decode(),
)  # fmt: skip
def test_hostile_text_takes_linear_time(text: str) -> None:
    begin = time.perf_counter()
    judge(text, "3")
    assert time.perf_counter() - begin < 1.0  # quadratic work on 50 kB would take minutes


def test_verdicts() -> None:
    assert judge(r"\boxed{0.5}", r"\frac12") == Verdict("0.5", "1/2", True)
    assert judge(r"\boxed{0.6}", r"\frac12") == Verdict("0.6", "3/5", False)
    assert judge("no idea", "5") == Verdict(None, None, False)
    assert judge(r"\boxed{5}", None) == Verdict("5", "5", None)
    assert judge(r"\boxed{5}", "") == Verdict("5", "5", None)  # one of MATH's gold answers is empty
    assert judge("", None) == Verdict(None, None, None)


def test_without_a_checker_the_undecided_is_unknown() -> None:
    assert judge(r"\boxed{1-\cos^2 y}", r"\sin^2 y").correct is None


def test_the_checker_is_asked_only_what_keys_leave_open() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.asked: list[tuple[str, str]] = []

        def check(self, answer: str, gold: str) -> bool | None:
            self.asked.append((answer, gold))
            return True

    checker = Recorder()
    assert judge(r"\boxed{2}", "3", checker).correct is False
    assert judge(r"\boxed{3}", "3", checker).correct is True
    assert checker.asked == []
    assert judge(r"\boxed{\sin x}", r"\cos x", checker).correct is True
    assert checker.asked == [(r"\sin x", r"\cos x")]


@pytest.mark.parametrize(
    ("key", "gold", "verdict"),
    [
        ("1/2", "1/2", True), ("1/2", "1/3", False), ("text:odd", "text:even", False), ("text:odd", "3", False),
        ("2*3^(1/2)", "3*2^(1/2)", False), ("x^2+1", "x^2+2", False), ("(1,2)", "(2,1)", False), ("(1,2)", "3", False),
        ("{1,2}", "(1,2)", None), ("[0,∞)", "(0,∞)", False), ("sin(x)", "cos(x)", None), ("2104_5", "2104", True),
        ("2104_5", "2104_6", False), ("x+y=0", "x+2*y=0", None), ("(x+1)^(-1)", "x", None),
        ("matrix(1;2)", "(1,2)", None),
        ("text:8:34am", "text:8:34pm", False),
        ("8:34", "text:8:34pm", None), ("5:0", "6:0", False), ("2:4", "1:2", None), ("text:no", "8:34", False),
        ("matrix(1;2)", "matrix(2;1)", False), ("matrix(1;2)", "3", False), ("5", "", None), ("", "5", False),
        ("(0,1)∪(1,2)", "(0,2)", None), ("(0,1)∪(2,3)", "5", False), ("text:no", "(1,2)", False),
        ("{1,2}", "{1,3}", False), ("x^(3/2)", "x", False), ("text:|x|", "x", None), ("e^(1/2)", "2", False),
    ],
)  # fmt: skip
def test_what_keys_decide(key: str, gold: str, verdict: bool | None) -> None:
    assert compare_keys(key, gold) is verdict
