"""What two keys alone can decide, with certainty; the rest is the checker's.

Why: over nine in ten comparisons need no computer algebra. Same key is yes. Different keys are no where the normal
form is unique: rational numbers, sums of radicals of primes with pi and i (radicals of distinct prime products are
linearly independent over the rationals, Besicovitch 1940), and expanded polynomials over these. So a rounded decimal
is not the root it approximates, and another letter is another variable.

    compare_keys("2*3^(1/2)", "3*2^(1/2)")   # False
"""

from __future__ import annotations

import re

from thinkfast.judge.canonical import TEXT

_NUMERAL = re.compile(r"(-?[0-9]+)(?:_([0-9]|\{[0-9]+\}))?")
_FACTOR = (
    r"(?:[0-9]{1,6}\^\([0-9]{1,4}/[0-9]{1,4}\)"  # a radical; up to 6 digits it is surely of a prime
    r"|pi(?:\^[0-9]{1,3})?"
    r"|(?:[A-Za-z]|\\[A-Za-z]+)(?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9]+\}))?(?:\^[0-9]{1,3})?)"
)
_TERM = rf"(?:[0-9]+(?:/[0-9]+)?(?:\*{_FACTOR})*|{_FACTOR}(?:\*{_FACTOR})*)"
_POLYNOMIAL = re.compile(rf"-?{_TERM}(?:[+-]{_TERM})*")


def compare_keys(key: str, gold: str) -> bool | None:
    """True or False when the keys decide; None when they do not."""
    if key == gold:
        return True
    numeral = _numerals(key, gold)
    if numeral is not None:
        return numeral
    if is_words(key) or is_words(gold) or (_is_unique(key) and _is_unique(gold)):
        return False
    shape = _shape(key)
    return False if shape is not None and shape == _shape(gold) else None


def _numerals(key: str, gold: str) -> bool | None:
    """`2104_5` against `2104`: the question names the base, so digits count; a wrong base is wrong."""
    mine, wanted = _NUMERAL.fullmatch(key), _NUMERAL.fullmatch(gold)
    if mine is None or wanted is None or not (mine[2] or wanted[2]):
        return None
    return mine[1] == wanted[1] and not (mine[2] and wanted[2])


def is_words(key: str) -> bool:
    """Whether `key` is words only, nothing that could be mathematics."""
    return key.startswith(TEXT) and all(c.isalpha() or c in " '-,.:" for c in key[len(TEXT) :])


def _is_unique(key: str) -> bool:
    return len(key) <= 1000 and _POLYNOMIAL.fullmatch(key) is not None


def _shape(key: str) -> str | None:
    """The brackets of a tuple, interval or set whose parts are all unique."""
    if len(key) < 3 or key[0] not in "([{" or key[-1] not in ")]}":
        return None
    parts = [p.removeprefix("-") if p.endswith("∞") else p for p in key[1:-1].split(",")]
    return key[0] + key[-1] if all(p == "∞" or _is_unique(p) for p in parts) else None
