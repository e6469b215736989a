"""The answer in a `\\boxed{…}` or `\\fbox{…}`, as MATH's solutions mark it and models are asked to.

Usage: ``last_boxed("so it is \\boxed{1/2}.")`` gives ``"1/2"``.
"""

from __future__ import annotations

import re

_BRACES = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(\{)?|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\(?:frac|sqrt|text)[^\s$]*|[^\s${}\\]+")


def last_boxed(text: str) -> str | None:
    """The content of the last complete box, of nested ones the outermost, or None. Linear in the length of ``text``."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    boxes: list[tuple[int, int]] = []  # (start, end) of the content of each outermost complete box
    stack: list[int | None] = []  # for every open brace: where the content of its box starts, None for other braces
    for match in _BRACES.finditer(text):
        token = match[0]
        if token.endswith("{") and token[0] in "\\{" and token != "\\{":
            stack.append(match.end() if match[1] else None)
        elif token == "}":
            start = stack.pop() if stack else None
            if start is not None:
                while boxes and boxes[-1][0] > start:
                    boxes.pop()
                boxes.append((start, match.start()))
        elif token.startswith(("\\boxed", "\\fbox")):
            bare = _BARE_BOX.match(text, match.end())
            if bare:
                boxes.append(bare.span())
    for start, end in reversed(boxes):
        answer = text[start:end].strip()
        if answer:
            return answer
    return None
