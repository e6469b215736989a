"""Exact sums of monomials: the normal form in which two readings of one number or polynomial meet.

Why: votes go to keys, so `\\frac{2}{\\sqrt2}`, `\\sqrt{2}` and `2^{1/2}` must come out as one string, at once and
without a computer algebra system, whose calls cost milliseconds and sometimes never return. A value is a sum of
rational coefficients times atoms with rational exponents. An atom is a prime (as radical), a symbol, `pi`, `e`, `i`,
or something taken whole: `sin(x)`, `(x+1)`. Everything is capped; past a cap the answer is `Unreadable` and is then
compared as text, so that no input can cost more than a few milliseconds.

    a = Algebra(); a.text(a.power(a.number(Fraction(8)), a.number(Fraction(1, 2))))   # "2*2^(1/2)"
"""

from __future__ import annotations

import math
from fractions import Fraction

Monomial = tuple[tuple[str, Fraction], ...]
Sum = dict[Monomial, Fraction]

POWER_BITS = 512  # a power is multiplied out up to this size; beyond, it stays a prime with an exponent
COEFFICIENT_BITS = 960  # under the reader's 300 digits, so that every key can be read back
EXPONENT_BITS = 128
EXPAND = 12  # (a+b)^12 is multiplied out, (a+b)^13 is an atom
NAME_CHARS = 1500
POSITIVE = frozenset({"pi", "e"})  # atoms known to be positive: roots may be taken through them
CONSTANTS = POSITIVE | {"i"}

_ONE = Fraction(1)


class Unreadable(Exception):
    """Not an expression that the key understands, or one that costs more than the key may spend; never leaves it."""


class Algebra:
    """Arithmetic with a budget: one instance per answer, `Unreadable` when the budget is spent."""

    def __init__(self, budget: int = 20_000) -> None:
        self._left = budget
        self._sums: dict[str, Sum] = {}  # "(x+1)" -> the sum itself, so that its powers can be multiplied out again

    def number(self, value: Fraction) -> Sum:
        return {(): value} if value else {}

    def atom(self, name: str) -> Sum:
        if len(name) > NAME_CHARS:
            raise Unreadable("too long")
        return {((name, _ONE),): _ONE}

    def add(self, a: Sum, b: Sum, sign: int = 1) -> Sum:
        self._spend(len(a) + len(b))
        out = dict(a)
        for monomial, c in b.items():
            total = out.get(monomial, Fraction(0)) + sign * c
            if total:
                out[monomial] = _checked(total)
            else:
                out.pop(monomial, None)
        return out

    def mul(self, a: Sum, b: Sum) -> Sum:
        out: Sum = {}
        for m1, c1 in a.items():
            for m2, c2 in b.items():
                self._spend(1 + len(m1) + len(m2))
                exponents = dict(m1)
                for name, e in m2:
                    exponents[name] = exponents.get(name, Fraction(0)) + e
                out = self.add(out, self._settle(exponents, c1 * c2))
        return out

    def divide(self, a: Sum, b: Sum) -> Sum:
        return self.mul(a, self._invert(b))

    def power(self, base: Sum, exponent: Sum) -> Sum:
        q = rational(exponent)
        if q is None:
            return self.atom(f"({self.text(base)})^({self.text(exponent)})")
        if max(q.numerator.bit_length(), q.denominator.bit_length()) > EXPONENT_BITS:
            raise Unreadable("exponent too large")
        if not base:
            if q < 0:
                raise Unreadable("division by zero")
            return self.number(Fraction(int(q == 0)))
        if q.denominator == 1:
            return self._whole_power(base, q.numerator)
        if len(base) == 1:
            ((monomial, c),) = base.items()
            return self._root(monomial, c, q)
        content = _content(base)
        return self.mul(self._root((), content, q), self._opaque(_scaled(base, 1 / content), q))

    def factorial(self, value: Sum) -> Sum:
        n = rational(value)
        if n is not None and n.denominator == 1 and 0 <= n <= 100:
            return self.number(Fraction(math.factorial(int(n))))
        return self.atom(f"fact({self.text(value)})")

    def binomial(self, above: Sum, below: Sum) -> Sum:
        n, k = rational(above), rational(below)
        if n is not None and k is not None and n.denominator == k.denominator == 1 and 0 <= k <= n <= 500:
            return self.number(Fraction(math.comb(int(n), int(k))))
        return self.atom(f"binom({self.text(above)})({self.text(below)})")

    def text(self, value: Sum) -> str:
        """The one spelling of `value`; reading it back gives `value` again."""
        if not value:
            return "0"
        self._spend(sum(1 + len(m) for m in value))
        out = []
        for monomial, c in sorted(value.items(), key=_order):
            factors = [self._factor_text(name, e) for name, e in monomial]
            if abs(c) != 1 or not factors:
                factors.insert(0, str(abs(c)))
            out.append(("-" if c < 0 else "+") + "*".join(factors))
        return "".join(out).removeprefix("+")

    # -- powers ------------------------------------------------------------------------------------------------

    def _whole_power(self, base: Sum, n: int) -> Sum:
        if n < 0:
            return self._whole_power(self._invert(base), -n)
        if len(base) == 1:
            ((monomial, c),) = base.items()
            exponents = {name: e * n for name, e in monomial}
            if _bits(c) * n <= POWER_BITS:
                return self._settle(exponents, c**n)
            sign = -1 if c < 0 and n % 2 else 1
            for prime, e in self._primes(abs(c), 1):
                exponents[prime] = exponents.get(prime, Fraction(0)) + e * n
            return self._settle(exponents, Fraction(sign))
        if n > EXPAND:
            content = _content(base)
            return self.mul(self._whole_power({(): content}, n), self._opaque(_scaled(base, 1 / content), Fraction(n)))
        out = self.number(_ONE)
        for _ in range(n):
            out = self.mul(out, base)
        return out

    def _invert(self, value: Sum) -> Sum:
        if not value:
            raise Unreadable("division by zero")
        if len(value) == 1:
            ((monomial, c),) = value.items()
            return self._settle({name: -e for name, e in monomial}, 1 / c)
        if len(value) == 2:
            # a + b with rational squares (a surd or a complex number): multiply by the conjugate
            (m1, c1), (m2, c2) = value.items()
            conjugate = {m1: c1, m2: -c2}
            norm = rational(self.mul(value, conjugate))
            if norm:
                return _scaled(conjugate, 1 / norm)
        content = _content(value)
        if value[min(value, key=lambda m: _order((m, _ONE)))] < 0:
            content = -content
        return _scaled(self._opaque(_scaled(value, 1 / content), Fraction(-1)), 1 / content)

    def _root(self, monomial: Monomial, c: Fraction, q: Fraction) -> Sum:
        """`(c * monomial) ** q` for a q that is no whole number."""
        loose = [name for name, e in monomial if not _is_positive(name) and (name == "i" or e.numerator % 2 == 0)]
        if loose or (c < 0 and q.denominator % 2 == 0 and (monomial or q.denominator != 2)):
            return self._opaque({monomial: c}, q)  # sqrt(x^2) is |x|, not x; sqrt(-x) is left alone too
        exponents = {name: e * q for name, e in monomial}
        sign = Fraction(1)
        if c < 0 and q.denominator == 2:
            exponents["i"] = Fraction(q.numerator)
        elif c < 0 and q.numerator % 2:
            sign = Fraction(-1)  # the real odd root
        for prime, e in self._primes(abs(c), q.denominator):
            exponents[prime] = exponents.get(prime, Fraction(0)) + e * q
        return self._settle(exponents, sign)

    def _opaque(self, value: Sum, q: Fraction) -> Sum:
        name = f"({self.text(value)})"
        if len(name) > NAME_CHARS:
            raise Unreadable("too long")
        self._sums[name] = value
        return {((name, q),): _ONE}

    def _settle(self, exponents: dict[str, Fraction], c: Fraction) -> Sum:
        """One monomial in normal form: i^2 = -1, whole powers of numbers in the coefficient, sums multiplied out."""
        kept: dict[str, Fraction] = {}
        grown: list[tuple[Sum, int]] = []
        for name, e in exponents.items():
            whole = math.floor(e)
            if name == "i" and e.denominator == 1:
                c = -c if whole % 4 >= 2 else c
                e = Fraction(whole % 2)
            elif name.isdecimal() and abs(whole) * int(name).bit_length() <= POWER_BITS:
                c *= Fraction(int(name)) ** whole
                e -= whole
            elif name in self._sums and 1 <= whole <= EXPAND:
                grown.append((self._sums[name], whole))
                e -= whole
            if e:
                kept[name] = e
        out: Sum = {tuple(sorted(kept.items())): _checked(c)}
        for value, times in grown:
            for _ in range(times):
                out = self.mul(out, value)
        return out

    def _primes(self, c: Fraction, root: int) -> list[tuple[str, int]]:
        """Factors of a positive rational; a cofactor without small primes stays whole, or as its own exact root."""
        if _bits(c) > POWER_BITS:
            raise Unreadable("number too large")
        out: list[tuple[str, int]] = []
        for n, sign in ((c.numerator, 1), (c.denominator, -1)):
            self._spend(20)
            p = 2
            while p < 1000 and p * p <= n:
                while n % p == 0:
                    out.append((str(p), sign))
                    n //= p
                p += 1 if p == 2 else 2
            if n > 1:
                base = _exact_root(n, root)
                out.append((str(base), sign * root) if base else (str(n), sign))
        return out

    # -- small things ------------------------------------------------------------------------------------------

    def _factor_text(self, name: str, e: Fraction) -> str:
        if e == 1:
            return name
        if name.startswith("(") and name not in self._sums:
            name = f"({name})"  # a power kept whole, such as (2)^(n)
        return f"{name}^{e}" if e.denominator == 1 and e > 0 else f"{name}^({e})"

    def _spend(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise Unreadable("budget spent")


def rational(value: Sum) -> Fraction | None:
    """The value as a fraction, or None when it is not a plain number."""
    if not value:
        return Fraction(0)
    if len(value) == 1 and () in value:
        return value[()]
    return None


def symbols(value: Sum) -> set[str]:
    """Atoms that stand for something unknown: everything but numbers, pi, e and i."""
    return {name for m in value for name, _ in m if not name.isdecimal() and name not in CONSTANTS}


def primitive(value: Sum) -> tuple[Sum, int]:
    """`value` over its content, first term positive; and the sign that was taken out."""
    if not value:
        return {}, 1
    sign = -1 if value[min(value, key=lambda m: _order((m, _ONE)))] < 0 else 1
    return _scaled(value, sign / _content(value)), sign


def _is_positive(name: str) -> bool:
    return name in POSITIVE or name.isdecimal()


def _order(term: tuple[Monomial, Fraction]) -> tuple[Fraction, list[tuple[str, Fraction]]]:
    # Highest degree first, as people write polynomials; numbers and their radicals have degree 0.
    monomial = term[0]
    degree = sum((e for name, e in monomial if not name.isdecimal()), Fraction(0))
    return -degree, [(name, -e) for name, e in monomial]


def _content(value: Sum) -> Fraction:
    numerator = math.gcd(*(c.numerator for c in value.values()))
    return Fraction(numerator, math.lcm(*(c.denominator for c in value.values())))


def _scaled(value: Sum, by: Fraction) -> Sum:
    return {m: _checked(c * by) for m, c in value.items()}


def _bits(c: Fraction) -> int:
    return max(c.numerator.bit_length(), c.denominator.bit_length())


def _checked(c: Fraction) -> Fraction:
    if _bits(c) > COEFFICIENT_BITS:
        raise Unreadable("number too large")
    return c


def _exact_root(n: int, root: int) -> int | None:
    if root < 2 or root > n.bit_length():
        return None
    low, high = 1, 1 << (n.bit_length() // root + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if middle**root <= n:
            low = middle
        else:
            high = middle - 1
    return low if low**root == n else None
