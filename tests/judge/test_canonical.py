"""The key is an equivalence that typography does not change, is its own key, and never says equal of unequal values."""

from __future__ import annotations

import cmath
import random
import re
import time
from dataclasses import dataclass

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from thinkfast.judge.canonical import MAX_CHARS, canonical_key

SAME = [
    ["1/2", "0.5", ".5", r"\frac12", r"\frac{1}{2}", r"\dfrac{1}{2}", r"$\tfrac{2}{4}$", "½", r"\frac 1 2"],
    ["1000", "1,000", "1{,}000", r"1,\!000", "1000.00", "$1,000", r"\$1000", "1000 dollars", r"1\,000"],
    ["-3/4", r"-\frac{3}{4}", r"\frac{-3}{4}", r"\frac{3}{-4}", "-0.75", "−3/4", r"- \frac 34"],
    ["5/3", r"1\frac{2}{3}", "1 2/3", r"1\dfrac23", r"1.\overline{6}"],
    ["50", r"50\%", "50%", "50 percent", r"50^\circ", "50°", r"50 \text{ cm}^2", "x = 50", "x=50", "050", "50."],
    ["2*3^(1/2)", r"2\sqrt{3}", r"\sqrt{12}", r"2\sqrt3", r"\frac{6}{\sqrt{3}}", "2√3", "2*sqrt(3)", r"2\cdot3^{1/2}"],
    ["(1,2)", r"\left( 1, 2 \right)", "( 1 ,2.0 )", "(x,y) = (1,2)"],
    ["{1,2}", "1,2", "2, 1", r"\{2,1\}", r"1 \text{ or } 2", "x = 1, x = 2", "1 and 2"],
    ["[0,∞)", r"[0,\infty)", r"\left[0, +\infty\right)", r"x \ge 0", r"x\in[0,\infty)"],
    ["(-∞,0)∪(1,∞)", r"(1,\infty) \cup (-\infty,0)", "x<0 or x>1"],
    ["x^2+5*x+4", "x^2+5x+4", "4+5x+x^2", "(x+1)(x+4)", "y = x^2 + 5x + 4", "f(x)=x^2+5x+4"],
    ["A", "(A)", r"\text{(A)}", r"\textbf{(A)}", "(A) 17"],
    ["text:friday", "Friday", r"\text{Friday}", "friday."],
    ["matrix(1,2;3,4)", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix}1&2\\3&4.0\end{bmatrix}"],
    ["2104_5", "2104_{5}"],
    ["text:8:34pm", r"8\!:\!34 \text{ p.m.}", "8:34 PM", "08:34 pm"],
    ["{-2,2}", r"\pm 2", "2, -2"],
    ["12*x-4*y-1=0", "12x - 4y = 1", "24x-8y-2=0", "4y - 12x + 1 = 0"],
    ["tan(15*deg)", r"\tan 15^\circ", r"\tan(15^{\circ})"],
]  # fmt: skip


@pytest.mark.parametrize("forms", SAME, ids=lambda forms: forms[0])
def test_equivalent_forms_share_the_key(forms: list[str]) -> None:
    assert {form: canonical_key(form) for form in forms} == dict.fromkeys(forms, forms[0])


def test_the_groups_above_have_different_keys() -> None:
    assert len({canonical_key(forms[-1]) for forms in SAME}) == len(SAME)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0.5", r"50\%"), ("0.333", "1/3"), ("(1,2)", "(2,1)"), ("[1,2]", "(1,2)"), ("1, 000", "1,000"),
        (r"\tan 15^\circ", r"\tan 15"), ("5m", "5"), ("xy", "x+y"), (r"\sqrt{x^2}", "x"), ("2104_5", "2104_6"),
        ("AB=9, CD=4", "AB=4, CD=9"), (r"5\text{ feet } 3\text{ inches}", "15"), ("1 2", "12"), ("A", "a"),
        ("10^{1000000000}", "10^{1000000001}"), ("(1,234)", "1234"), ("3abc", "3"), (r"2\mathrm{i}", "2"),
    ],
)  # fmt: skip
def test_different_answers_have_different_keys(one: str, other: str) -> None:
    assert canonical_key(one) != canonical_key(other)


# -- properties ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spelled:
    """One value written in two ways, and the value itself at a point, for comparison."""

    one: str
    other: str
    value: complex


X, Y = 0.7310585, 1.3862943  # where expressions are evaluated


def _leaf() -> st.SearchStrategy[Spelled]:
    whole = st.integers(0, 30).map(lambda n: Spelled(str(n), f"{n}.0", n))
    ratio = st.tuples(st.integers(1, 20), st.integers(1, 12)).map(
        lambda p: Spelled(
            rf"\frac{{{p[0]}}}{{{p[1]}}}", rf"\left(\dfrac{{{3 * p[0]}}}{{{3 * p[1]}}}\right)", p[0] / p[1]
        )
    )
    decimal = st.integers(1, 999).map(lambda n: Spelled(f"{n / 100:.2f}", rf"\frac{{{n}}}{{100}}", n / 100))
    root = st.integers(2, 30).map(lambda n: Spelled(rf"\sqrt{{{n}}}", rf"\frac{{\sqrt{{{4 * n}}}}}{{2}}", n**0.5))
    names = st.sampled_from([Spelled("x", "{x}", X), Spelled("y", " y ", Y), Spelled(r"\pi", "π", cmath.pi)])
    return st.one_of(whole, ratio, decimal, root, names)


def _grown(inner: st.SearchStrategy[Spelled]) -> st.SearchStrategy[Spelled]:
    two = st.tuples(inner, inner)
    return st.one_of(
        two.map(
            lambda p: Spelled(f"{p[0].one}+{p[1].one}", f"({p[1].other}) + ({p[0].other})", p[0].value + p[1].value)
        ),
        two.map(
            lambda p: Spelled(f"{p[0].one}-({p[1].one})", f"-({p[1].other})+({p[0].other})", p[0].value - p[1].value)
        ),
        two.map(
            lambda p: Spelled(
                rf"\left({p[0].one}\right)\left({p[1].one}\right)",
                rf"({p[1].other}) \cdot ({p[0].other})",
                p[0].value * p[1].value,
            )
        ),
        inner.map(lambda e: Spelled(f"({e.one})^2", f"({e.other})({e.other})", e.value**2)),
    )


expressions = st.recursive(_leaf(), _grown, max_leaves=8)


@given(expressions)
def test_two_spellings_of_one_value_share_the_key(e: Spelled) -> None:
    key = canonical_key(e.one)
    assert key == canonical_key(e.other)
    assert not key.startswith("text:")


@given(expressions, expressions)
def test_the_key_holds_the_value(a: Spelled, b: Spelled) -> None:
    assert abs(_evaluate(canonical_key(a.one)) - a.value) <= 1e-6 * (1 + abs(a.value))
    if abs(a.value - b.value) > 1e-6 * (1 + abs(a.value)):
        assert canonical_key(a.one) != canonical_key(b.one)


def _evaluate(key: str) -> complex:
    """A key read as arithmetic by Python itself."""
    return complex(eval(key.replace("^", "**"), {"x": X, "y": Y, "pi": cmath.pi}))


PIECES = re.split(
    " ",
    r"\frac \sqrt \text{ cm} \text{or} { } ( ) [ ] , ; = \le > \cup \infty x y z a A B i e \pi \alpha 1 2 0 10 .5 3.0 "
    r"1,000 + - * / ^ _ ! \pm ° % $ \sin \log \cdot : | \left \right \, \! \begin{pmatrix} \end{pmatrix} \\ & and or "
    r"four Friday cm dollars \in \approx matrix( deg text: no x=5 y= 1/2 ² ½ √ \{ \} \binom ' \theta fact "
    r"p.m. ∞ ≥ ∪ İ ﬁ",
)
soup = st.lists(st.sampled_from([*PIECES, " ", " "]), max_size=12).map("".join)


@given(st.one_of(soup, st.text(max_size=40)))
def test_a_key_is_its_own_key(answer: str) -> None:
    key = canonical_key(answer)
    assert canonical_key(key) == key


def test_a_key_is_its_own_key_on_much_soup() -> None:
    rng = random.Random(7)
    for _ in range(4000):
        answer = "".join(rng.choice(PIECES) + rng.choice(["", "", " "]) for _ in range(rng.randint(1, 9)))
        key = canonical_key(answer)
        assert canonical_key(key) == key, answer


@given(soup)
def test_typography_does_not_matter(answer: str) -> None:
    assume(not answer.strip().startswith("text:"))  # that is a key already
    key = canonical_key(answer)
    assert canonical_key(f"  ${answer}$ ") == key
    assert canonical_key(re.sub(r"\\frac(?![A-Za-z])", r"\\dfrac", answer)) == key
    # a control word eats the space behind it, any other space may be doubled
    assert canonical_key(re.sub(" ", "  ", answer)) == key


@given(expressions, st.randoms())
def test_spaces_inside_expressions_do_not_matter(e: Spelled, rng: random.Random) -> None:
    spaced = re.sub(r"(?<=[-+(){}^])|(?=[-+(){}^])", lambda _: rng.choice(["", " ", r"\,", r"\ "]), e.one)
    assert canonical_key(spaced.replace(r"\left ", r"\left").replace(r"\right ", r"\right")) == canonical_key(e.one)


@given(st.integers(0, 10**12), st.booleans())
def test_commas_and_zeros_do_not_matter(n: int, negative: bool) -> None:
    sign = "-" if negative and n else ""
    assert {canonical_key(f) for f in (f"{sign}{n:,}", f"{sign}{n}.00", f"{sign}00{n}", f"{sign}${n:,}")} == {
        f"{sign}{n}"
    }


# -- hostile ---------------------------------------------------------------------------------------------------

HOSTILE = {
    "nested fractions": r"\frac{1" * 12_000,
    "nested groups": "{" * 25_000 + "}" * 25_000,
    "nested, short": "(" * 900 + "1" + ")" * 900,
    "tower": "9^{9^{9^{9^9}}}",
    "power": "10^{1000000000}",
    "ten powers": "+".join(f"{n}^{{{10**9}}}" for n in range(2, 12)),
    "expansion": "(a+b+c+d+e+f+g)^{12}" * 5,
    "product of sums": "(x+y+z+1)" * 200,
    "digits": "9" * 50_000,
    "factorial": "100000!!!!!",
    "commas": "1," * 25_000,
    "spaces": "1" + " " * 50_000 + "2",
    "carets": "^ " * 900,
    "text": r"\text" * 10_000,
    "nested text": r"\te" * 300 + r"\text" + "xt" * 300,
    "surrogate": "\ud800",
    "nul": "\x00" * 50_000,
    "letters": "ab" * 25_000,
    "roots": r"\sqrt" * 390 + "2",
    "long fractions": "+".join(rf"\frac{{1}}{{{n}}}" for n in range(2, 120)),
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_answers_are_keyed_at_once(answer: str) -> None:
    begin = time.perf_counter()
    key = canonical_key(answer)
    assert time.perf_counter() - begin < 0.5
    assert len(key) <= MAX_CHARS
    assert canonical_key(key) == key
