"""Read one LaTeX or plain-text expression into the normal form of `algebra`.

Why: a hand-written descent over at most 400 tokens is linear, cannot be made to hang, and refuses (`Unreadable`)
what it does not understand instead of guessing: two adjacent numbers, unknown commands, words.

    a = Algebra(); a.text(read(r"\\frac{3}{\\sqrt{3}}", a))   # "3^(1/2)"
"""

from __future__ import annotations

import re
from fractions import Fraction

from thinkfast.judge.algebra import Algebra, Sum, Unreadable, rational

MAX_TOKENS = 400
MAX_DEPTH = 40
MAX_DIGITS = 300  # more than any coefficient that `algebra` prints

_FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh log ln lg exp det cis"
_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell"
)
FUNCTIONS = frozenset(_FUNCTIONS.split())
GREEK = frozenset(_GREEK.split())
NAMES = FUNCTIONS | GREEK | {"pi", "sqrt", "deg", "frac", "binom", "fact"}

_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]*)?|\.[0-9]+)|(\\?)([A-Za-z]+)|(.))", re.DOTALL)
_SHORT_WORD = 3  # "xyz" is a product of symbols; a longer word is a word

Token = tuple[str, str]  # (kind, text), kind in "num", "sym", "cmd", "op", "end"
_END: Token = ("end", "")


def read(text: str, algebra: Algebra) -> Sum:
    """The normal form of `text`.

    Raises:
        Unreadable: not an expression this reader knows, or too long, too deep, too large.
    """
    reader = _Reader(_tokens(text), algebra)
    value = reader.sum(0)
    if reader.peek() != _END:
        raise Unreadable("leftover text")
    return value


def _tokens(text: str) -> list[Token]:
    out: list[Token] = []
    end = len(text.rstrip())
    at = 0
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or len(out) > MAX_TOKENS:
            raise Unreadable("too many tokens")
        number, backslash, word, op = match.groups()
        if number:
            if len(number) > MAX_DIGITS:
                raise Unreadable("number too long")
            out.append(("num", number))
        elif word and (backslash or word in NAMES):
            if word not in NAMES:
                raise Unreadable(f"unknown command {word}")
            out.append(("cmd", word))
        elif word:
            if len(word) > _SHORT_WORD:
                raise Unreadable("a word")
            out.extend(("sym", letter) for letter in word)
        else:
            out.append(("op", op))
        at = match.end()
    return out


class _Reader:
    """Recursive descent: sum > term > factor > primary. `depth` counts nested groups."""

    def __init__(self, tokens: list[Token], algebra: Algebra) -> None:
        self._tokens = tokens[::-1]  # a stack: a digit taken out of a number is pushed back in place
        self._a = algebra

    def peek(self) -> Token:
        return self._tokens[-1] if self._tokens else _END

    def sum(self, depth: int) -> Sum:
        if depth > MAX_DEPTH:
            raise Unreadable("too deep")
        value = self._term(depth)
        while self.peek() in (("op", "+"), ("op", "-")):
            sign = 1 if self._take()[1] == "+" else -1
            value = self._a.add(value, self._term(depth), sign)
        return value

    # -- terms -------------------------------------------------------------------------------------------------

    def _term(self, depth: int) -> Sum:
        negative = self._signs()
        value = self._mixed_number(depth)
        if value is None:
            value = self._factor(depth)
        while True:
            kind, text = self.peek()
            if kind == "op" and text in "*/":
                self._take()
                flip = self._signs()
                other = self._factor(depth)
                value = self._a.mul(value, other) if text == "*" else self._a.divide(value, other)
                negative ^= flip
            elif self._starts_factor():
                value = self._a.mul(value, self._factor(depth))
            else:
                break
        return self._a.add({}, value, -1) if negative else value

    def _mixed_number(self, depth: int) -> Sum | None:
        """`2\\frac{1}{3}` is two and a third when all three are whole and the fraction is proper."""
        window = self._tokens[-2:]
        if len(window) < 2 or window[1][0] != "num" or "." in window[1][1] or window[0] != ("cmd", "frac"):
            return None
        whole = self._take()[1]
        self._take()
        above, below = self._argument(depth), self._argument(depth)
        fraction = self._a.divide(above, below)
        top, bottom, w = rational(above), rational(below), self._number(whole)
        if top and bottom and top.denominator == bottom.denominator == 1 and 0 < top < bottom:
            return self._a.add(w, fraction)
        return self._a.mul(w, fraction)

    def _signs(self) -> bool:
        negative = False
        while self.peek() in (("op", "+"), ("op", "-")):
            negative ^= self._take()[1] == "-"
        return negative

    def _starts_factor(self, functions: bool = True) -> bool:
        kind, text = self.peek()
        # A number may not follow by juxtaposition: "2 3", "x2" and "\\sqrt12" are not readable with certainty.
        return kind == "sym" or (kind == "cmd" and (functions or text not in FUNCTIONS)) or text in ("(", "{", "∞")

    def _factor(self, depth: int) -> Sum:
        value = self._primary(depth)
        while True:
            kind, text = self.peek()
            if kind != "op":
                return value
            if text == "!":
                self._take()
                value = self._a.factorial(value)
            elif text == "°":
                self._take()
                value = self._a.mul(value, self._a.atom("deg"))
            elif text == "^":
                self._take()
                value = self._a.power(value, self._exponent(depth + 1))
            else:
                return value

    def _exponent(self, depth: int) -> Sum:
        if depth > MAX_DEPTH:
            raise Unreadable("too deep")
        negative = self._signs()
        value = self._primary(depth)
        if self.peek() == ("op", "^"):  # 2^3^2 = 2^(3^2)
            self._take()
            value = self._a.power(value, self._exponent(depth + 1))
        return self._a.add({}, value, -1) if negative else value

    # -- primaries ---------------------------------------------------------------------------------------------

    def _primary(self, depth: int) -> Sum:
        kind, text = self._take()
        if kind == "num":
            if self.peek() == ("op", "_"):  # 2104_5: a numeral in another base is not the number 2104
                return self._a.atom(f"{text.lstrip('0') or '0'}{self._subscript()}")
            return self._number(text)
        if kind == "sym":
            return self._a.atom(text + self._subscript())
        if kind == "cmd":
            return self._command(text, depth)
        if text in ("(", "{"):
            value = self.sum(depth + 1)
            self._expect(")" if text == "(" else "}")
            return value
        if text == "∞":
            return self._a.atom("∞")
        raise Unreadable(f"unexpected {text!r}")

    def _command(self, name: str, depth: int) -> Sum:
        a = self._a
        if name == "frac":
            above = self._argument(depth)
            return a.divide(above, self._argument(depth))
        if name == "binom":
            above = self._argument(depth)
            return a.binomial(above, self._argument(depth))
        if name == "fact":
            return a.factorial(self._argument(depth))
        if name == "sqrt":
            root = a.number(Fraction(2))
            if self.peek() == ("op", "["):
                self._take()
                root = self.sum(depth + 1)
                self._expect("]")
            return a.power(self._argument(depth), a.divide(a.number(Fraction(1)), root))
        if name in FUNCTIONS:
            return self._function(name, depth)
        if name in ("pi", "deg"):
            return a.atom(name)
        return a.atom(f"\\{name}{self._subscript()}")

    def _function(self, name: str, depth: int) -> Sum:
        a = self._a
        if depth > MAX_DEPTH:
            raise Unreadable("too deep")
        power: Sum | None = None
        label = name
        if self.peek() == ("op", "_"):
            self._take()
            label = f"{name}_({a.text(self._argument(depth))})"
        if self.peek() == ("op", "^"):
            self._take()
            power = self._exponent(depth + 1)
            if rational(power) == -1 and f"arc{label}" in FUNCTIONS:
                label, power = f"arc{label}", None
        if self.peek()[1] in ("(", "{"):
            argument = self._argument(depth)
        else:
            argument = a.number(Fraction(-1 if self._signs() else 1))
            kind, _ = self.peek()
            if kind == "num":
                argument = a.mul(argument, self._factor(depth + 1))
            elif not self._starts_factor():
                raise Unreadable("function without argument")
            while self._starts_factor(functions=False):
                argument = a.mul(argument, self._factor(depth + 1))
        if label == "exp":
            value = a.power(a.atom("e"), argument)
        else:
            value = a.atom(f"{label}({a.text(argument)})")
        return value if power is None else a.power(value, power)

    def _argument(self, depth: int) -> Sum:
        """A TeX macro argument: a group, or one token, where a number gives its first digit only."""
        kind, text = self.peek()
        if kind == "num" and len(text) > 1:
            self._tokens[-1] = ("num", text[1:])
            return self._number(text[0])
        if depth > MAX_DEPTH:
            raise Unreadable("too deep")
        return self._primary(depth + 1)

    def _subscript(self) -> str:
        if self.peek() != ("op", "_"):
            return ""
        self._take()
        kind, text = self._take()
        if (kind, text) == ("op", "{"):
            text = ""
            while self.peek() != ("op", "}"):
                kind, part = self._take()
                if kind not in ("num", "sym"):
                    raise Unreadable("subscript")
                text += part
            self._take()
        elif kind not in ("num", "sym"):
            raise Unreadable("subscript")
        return f"_{text}" if len(text) == 1 else f"_{{{text}}}"

    def _number(self, text: str) -> Sum:
        if not any(c.isdigit() for c in text):
            raise Unreadable("a dot")
        return self._a.number(Fraction(text if text[0] != "." else f"0{text}"))

    def _take(self) -> Token:
        if not self._tokens:
            raise Unreadable("ends early")
        return self._tokens.pop()

    def _expect(self, text: str) -> None:
        if self._take() != ("op", text):
            raise Unreadable(f"expected {text}")
