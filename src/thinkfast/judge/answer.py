"""From a chain of thought to a verdict: find the answer it states, give it a key, compare it with the gold answer.

Policy of `extract_answer`, first that finds something:

1. the last complete `\\boxed{…}` or `\\fbox{…}` (of nested ones the outermost; also `\\boxed 5`), not the unfinished
   one of a chain that was cut;
2. the last line `#### x` (GSM8K);
3. the last "answer is x", "answer: x", "answer = x" (up to the end of its sentence);
4. the last number in the text, unless `last_number=False`. Pass that for a chain that was cut short: its last number
   is some intermediate value, and as a vote it would be noise.

A chain without an answer is wrong, with certainty; without a gold answer, or when the checker cannot decide, the
verdict is None, and never silently "wrong".

    judge("… so it is \\\\boxed{1/2}.", "0.5").correct   # True
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from thinkfast.data.boxed import last_boxed
from thinkfast.judge.canonical import canonical_key
from thinkfast.judge.equal import compare_keys

__all__ = ["Equivalence", "Verdict", "canonical_key", "compare_keys", "extract_answer", "judge"]

_HASHES = re.compile(r"^[ \t]*####[ \t]*(\S[^\n]*)$", re.MULTILINE)
_PHRASE = re.compile(
    r"answer(?:\*\*)?\s{0,3}(?:is|=|:|to the problem is|would be)(?![A-Za-z])(?:\*\*)?[ \t:]{0,5}", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"\n|[.;!?](?=\s|$)")
_DOLLARS = re.compile(r"\$([^$\n]{1,200})\$")
_NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z)])-)?\$?"  # "3-5" is a difference, " -5" a number
    r"(?:(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+|/[0-9]+)?|\.[0-9]+)"
)
_STATEMENT_CHARS = 200


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a chain answered: `answer` as written, its `key` (both None without an answer), and whether it is right.

    `correct` is None when that is not known: no gold answer, a checker that ran out of time or is not installed.
    """

    answer: str | None
    key: str | None
    correct: bool | None


class Equivalence(Protocol):
    """Anything that can decide what keys cannot, such as `checker.Checker`."""

    def check(self, answer: str, gold: str) -> bool | None:
        """Whether `answer` equals `gold`; None when not decided."""
        ...


def extract_answer(text: str, *, last_number: bool = True) -> str | None:
    """The answer that `text` states, stripped, or None. Linear in the length of `text`, whatever is in it."""
    answer = last_boxed(text) or _after_hashes(text) or _after_phrase(text)
    if answer is None and last_number:
        answer = _last_number(text)
    return answer


def judge(text: str, gold: str | None, checker: Equivalence | None = None, *, last_number: bool = True) -> Verdict:
    """Extract the answer of `text` and compare it with `gold`, by key first, by `checker` where keys do not decide."""
    answer = extract_answer(text, last_number=last_number)
    key = canonical_key(answer) if answer is not None else ""
    if gold is None or not canonical_key(gold):
        return Verdict(answer if key else None, key or None, None)
    if answer is None or not key:
        return Verdict(None, None, False)
    correct = compare_keys(key, canonical_key(gold))
    if correct is None and checker is not None:
        correct = checker.check(answer, gold)
    return Verdict(answer, key, correct)


def _after_hashes(text: str) -> str | None:
    last = None
    for match in _HASHES.finditer(text):
        last = match[1].strip()
    return last


def _after_phrase(text: str) -> str | None:
    last = None
    for match in _PHRASE.finditer(text):
        last = match
    if last is None:
        return None
    stated = text[last.end() : last.end() + _STATEMENT_CHARS].lstrip(" *\n")
    end = _SENTENCE_END.search(stated)
    stated = (stated[: end.start()] if end else stated).strip(" *")
    if stated.count("$") >= 2 and (inner := _DOLLARS.search(stated)):
        return inner[1].strip()
    if len(stated.split()) > 3 and canonical_key(stated).startswith("text:"):
        return _last_number(stated) or stated or None  # "the answer is that she has 18 apples"
    return stated or None


def _last_number(text: str) -> str | None:
    last = None
    for match in _NUMBER.finditer(text):
        last = match[0]
    return last.replace("$", "") if last else None
