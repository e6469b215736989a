"""Drop what stands around a value: units, currency words, percent signs, and labels such as `x =`.

Why: the question fixes the unit, so `18`, `$18`, `18 dollars` and `18\\text{ dollars}` are one answer. Policy:

* A trailing unit is dropped, whatever it is; `80 cents` is 80 and `0.80 dollars` is 4/5.
* A percent sign is a unit too: `50\\%` is 50, not 1/2. In MATH every gold answer with a percent sign belongs to a
  question that asks "what percent", where 50 is right and 0.5 is wrong; GSM8K's gold answers drop the sign.
* Plain words count as a unit only behind something that is not a word, and a single letter never does: `5m` is 5 m.

    strip_units("5 square feet")   # "5"
"""

from __future__ import annotations

import re

from thinkfast.judge.expression import NAMES

_UNIT_WORDS = (
    "cm mm km ft yd mi in inch kg mg lb lbs oz ml mph kph fps hr hrs min mins sec secs day days year cup cups men gal "
    "sq cu per deg rad usd dollar cent pm am unit units box bag job way ways row foot feet inches boy boys girl dog "
    "dogs cat cats hat hats pen pens egg eggs pie pies toy toys car cars bus jar jars can cans km² of"
)
_UNITS = frozenset(_UNIT_WORDS.split())
_VOWELS = frozenset("aeiouyAEIOUY")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TEXT_TAIL = re.compile(r"\\text\{([^{}0-9]*)\}(?:\s*\^\s*(?:[0-9]|\{[0-9]\}))?\s*$")
_POWER_TAIL = re.compile(r"(?<=[A-Za-z])\s*\^\s*(?:[23]|\{[23]\})\s*$")
_RATE_TAIL = re.compile(r"(?<=[0-9\s})])(?:km|mi|m|ft|cm)/(?:h|hr|s|sec|min)\s*$")
_FUNCTION_CALL = r"(?:\^(?:-1|\{-1\}))?\([A-Za-z0-9,+-]{1,12}\)"
_SUBSCRIPT = r"(?:_[A-Za-z0-9]|_\{[A-Za-z0-9]{1,6}\})"
_LABEL = re.compile(
    rf"[A-Za-z]{_SUBSCRIPT}?'?(?:{_FUNCTION_CALL})?"  # x, a_{12}, f(x), f^{-1}(x)
    rf"|\\(?:{'|'.join(sorted(NAMES - {'sqrt', 'frac', 'binom', 'sin', 'cos', 'tan', 'pi'}))}){_SUBSCRIPT}?"  # \alpha
    r"|(?:m?\\?(?:angle|triangle|overline|∠))?\s*\{?[A-Z]{1,4}\}?"  # AB, \angle ABC
    r"|\\text\{[^{}]*\}(?:_.)?"
    r"|[A-Za-z]{4,20}(?: [A-Za-z]{1,20}){0,6}"  # total cost
    r"|\([A-Za-z](?:, ?[A-Za-z]){1,4}\)"  # (x, y)
)


def strip_units(s: str) -> str:
    """`s` without trailing percent signs, units and unit words, as long as something is left."""
    for _ in range(4):
        before = s
        s = s.rstrip(" .%")
        match = _TEXT_TAIL.search(s[-200:])
        if match and s[: -len(match[0])].strip() and match[1].strip() not in ("i", "e"):
            s = s[: -len(match[0])].rstrip()
        s = _strip_words(s)
        if s == before:
            return s
    return s


def is_label(s: str) -> bool:
    """Whether the left side of `s = …` only names what is asked for."""
    return len(s) <= 120 and _LABEL.fullmatch(s.strip()) is not None


def _strip_words(s: str) -> str:
    rate = _RATE_TAIL.search(s[-12:])
    if rate:
        return s[: -len(rate[0])].rstrip()
    powered = _POWER_TAIL.search(s[-12:])
    body = s[: -len(powered[0])] if powered else s  # "5 cm^2": the square goes only together with its unit
    stripped = body.rstrip(" ./")
    while True:
        rest = stripped.rstrip(_LETTERS)
        word = stripped[len(rest) :]
        if not word or not _is_unit(word) or rest.endswith(("\\", "_", "^", "{")):
            break
        if not rest.strip() or not any(c.isdigit() or c in ")}∞°" or c == "\\" for c in rest):
            break  # nothing but words: the words are the answer
        stripped = rest.rstrip(" ./")
    return s if stripped == body.rstrip(" ./") else stripped


def _is_unit(word: str) -> bool:
    if word in NAMES:
        return False
    return word.lower() in _UNITS or (len(word) >= 4 and not _VOWELS.isdisjoint(word))
