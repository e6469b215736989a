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
_BRACKETS = {"()", "(]", "[)", "[]"}
_MATRIX = re.compile(r"matrix\(.*\)")
_CLOCK = re.compile(r"[0-9]{1,2}:0|[0-9]{1,2}(?::[0-9]{1,2}){2}")  # 5:00 is a time; 2:4 may be a ratio, equal to 1:2
_RATIO = re.compile(r"[0-9]+(?::[0-9]+)+")
_TIME = re.compile(rf"{TEXT}[0-9:]+[ap]m")
_FACTOR = (
    r"(?:[0-9]{1,6}\^\([0-9]{1,4}/[0-9]{1,4}\)"  # a radical; up to 6 digits it is surely of a prime
    r"|pi(?:\^[0-9]{1,3})?"
    r"|(?:[A-Za-z]|\\[A-Za-z]+)(?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9]+\}))?"
    r"(?:\^(?:[0-9]{1,3}|\([0-9]{1,3}/[0-9]{1,3}\)))?)"
)
_TERM = rf"(?:[0-9]+(?:/[0-9]+)?(?:\*{_FACTOR})*|{_FACTOR}(?:\*{_FACTOR})*)"
_POLYNOMIAL = re.compile(rf"-?{_TERM}(?:[+-]{_TERM})*")


def compare_keys(key: str, gold: str) -> bool | None:
    """True or False when the keys decide; None when they do not."""
    if not gold or not key:
        return False if gold else None  # nothing said is wrong, nothing to compare with is unknown
    if key == gold:
        return True
    numeral = _numerals(key, gold)
    if numeral is not None:
        return numeral
    if is_words(key) or is_words(gold):
        half_unsaid = (_TIME.fullmatch(key) and _RATIO.fullmatch(gold)) or (
            _TIME.fullmatch(gold) and _RATIO.fullmatch(key)
        )
        return None if half_unsaid else False  # 8:34 may mean 8:34 p.m.
    mine, wanted = _shape(key), _shape(gold)
    if mine is None or wanted is None:
        return None
    one_thing = "" in (mine, wanted)  # one value is neither several nor an interval
    brackets = {mine, wanted} <= _BRACKETS  # those of tuples and intervals mean what they say
    # Left open: what authors mix (list or tuple, column or point), and unions, which can be cut in many ways.
    return False if one_thing or brackets or (mine == wanted != "∪") else None


def _numerals(key: str, gold: str) -> bool | None:
    """`2104_5` against `2104`: the question names the base, so digits count; a wrong base is wrong."""
    mine, wanted = _NUMERAL.fullmatch(key), _NUMERAL.fullmatch(gold)
    if mine is None or wanted is None or not (mine[2] or wanted[2]):
        return None
    return mine[1] == wanted[1] and not (mine[2] and wanted[2])


def is_words(key: str) -> bool:
    """Whether `key` is words or a time of day, nothing that could be mathematics."""
    if not key.startswith(TEXT):
        return False
    return all(c.isalpha() or c in " '-,.:" for c in key) or _TIME.fullmatch(key) is not None


def _shape(key: str) -> str | None:
    """Kind of `key`: nothing for one value, brackets, "matrix", ":" or "∪"; None unless all its parts are unique."""
    if _is_unique(key):
        return ""
    if "∪" in key:
        return "∪" if None not in map(_shape, key.split("∪")) else None
    if _CLOCK.fullmatch(key):
        return ":"
    kind, inner = (key[:6], key[7:-1]) if _MATRIX.fullmatch(key) else (key[:1] + key[-1:], key[1:-1])
    if kind != "matrix" and kind not in _BRACKETS and kind != "{}":
        return None
    parts = [p.removeprefix("-") if p.endswith("∞") else p for p in inner.replace(";", ",").split(",")]
    return kind if all(p == "∞" or _is_unique(p) for p in parts) else None


def _is_unique(key: str) -> bool:
    return len(key) <= 1000 and _POLYNOMIAL.fullmatch(key) is not None
