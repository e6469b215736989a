"""Undo typography: what a model or an author may write differently without meaning anything else.

Why: `$\\dfrac{1}{2}$.`, `\\left( 1,\\ 2 \\right)` and `48,\\!048` carry spacing, sizes and marks that say nothing about
the value. Everything here is a regular expression or a table over a bounded string, each linear in its length.
One-character forms stand for commands afterwards: `*` `/` `≤` `≥` `≠` `∪` `∞` `±` `°` `≈` `∈`, and `⏎` for a new row.

    clean(r"$\\left[\\dfrac12,\\infty\\right)$.")   # "[\\frac12,∞)"
"""

from __future__ import annotations

import re
import unicodedata

_CHARS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "*", "·": "*", "∙": "*", "⋅": "*", "∗": "*",
        "÷": "/", "⁄": "/", "∕": "/", "π": "\\pi ", "θ": "\\theta ", "º": "°", "˚": "°", "⩽": "≤", "⩾": "≥",
        "’": "'", "‘": "'", "“": '"', "”": '"', "€": "", "£": "", "¥": "", "∞": "∞", "⟨": "(", "⟩": ")",
        **{c: f"^{i}" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    }
)  # fmt: skip
_VULGAR = re.compile("[¼½¾⅐-⅞]")
_SIZES = re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits)(?![A-Za-z])\.?")
_GROUPED = re.compile(r"(?<=[0-9])(?:\{,\}|,\\[!,;]|\\,|,\\ )(?=[0-9]{3}(?![0-9]))")
_SPACES = re.compile(r"\\[!,;: ]|~|\\q?quad(?![A-Za-z])")
_PHANTOM = re.compile(r"\\phantom\s*(?:\{[^{}]*\}|.)")
_FRAC = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_FRAC_DIGITS = re.compile(r"\\frac\s*([0-9])\s+([0-9])(?![0-9])")
_BINOM = re.compile(r"\\[dt]binom(?![A-Za-z])")
_TEXT = re.compile(r"\\(?:text(?:rm|bf|it|normal|sf|up)?|mbox|hbox|mathrm|operatorname)\*?\s*(?=\{)")
_FACE = re.compile(r"\\(?:math(?:bf|it|bb|sf|cal|normal)|boldsymbol|bm|boxed|fbox|ensuremath)\s*(?=\{)")
_SEPARATING = re.compile(r"\\text\{\s*,?\s*(?:and|or)\s*\}")
_SEGMENT = re.compile(r"\\(?:overline|overrightarrow|widehat)\s*\{([A-Z]{2,3})\}")
_REPEATING = re.compile(r"(?<![0-9.])([0-9]{0,20})\.([0-9]{0,20})\\overline\{([0-9]{1,20})\}")
_DEGREES = re.compile(r"\^?\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z])|\\degree(?![A-Za-z])|°)")
_COMMANDS = {
    "cdot": "*", "times": "*", "ast": "*", "div": "/", "slash": "/", "le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥",
    "geq": "≥", "geqslant": "≥", "ne": "≠", "neq": "≠", "lt": "<", "gt": ">", "cup": "∪", "infty": "∞", "pm": "±",
    "mp": "∓", "approx": "≈", "in": "∈", "langle": "(", "rangle": ")", "lbrace": "{", "rbrace": "}", "lbrack": "[",
    "rbrack": "]", "emptyset": "∅", "varnothing": "∅", "colon": ":", "prime": "'", "dots": "…", "ldots": "…",
}  # fmt: skip
_COMMAND = re.compile(r"\\(" + "|".join(sorted(_COMMANDS, key=len, reverse=True)) + r")(?![A-Za-z])\s?")
_ASCII_RELATIONS = (("<=", "≤"), (">=", "≥"), ("!=", "≠"), ("**", "^"))
_ROOT_SIGN = re.compile(r"√\s*(?:([0-9]+)|([A-Za-z])|(?=[({]))")
_SCIENTIFIC = re.compile(r"(-?[0-9]{1,20}(?:\.[0-9]{1,20})?)[eE]([+-]?[0-9]{1,3})")


def clean(answer: str) -> str:
    """`answer` without typography; the same string again when applied twice is not promised, the key sees to that."""
    s = _VULGAR.sub(_vulgar, answer).translate(_CHARS)
    s = unicodedata.normalize("NFKC", s)
    s = s.strip().strip("*`").replace("\\\\", "⏎")
    s = re.sub(r"\\[()\[\]]", "", s) if "\\(" in s or "\\[" in s else s
    s = s.replace("\\$", "").replace("$", "").replace("\\%", "%").replace("\\#", "#").replace("\\_", "_")
    s = s.replace("\\{", "{").replace("\\}", "}").replace("\\|", "|").replace("\\&", "and")
    s = _SIZES.sub("", s)
    s = _PHANTOM.sub("", s)
    s = _GROUPED.sub("", s)
    s = _SPACES.sub(" ", s)
    s = _FRAC_DIGITS.sub(r"\\frac{\1}{\2}", _FRAC.sub(r"\\frac", s))
    s = _BINOM.sub(r"\\binom", s)
    s = _FACE.sub("", _TEXT.sub(r"\\text", s))
    s = _SEPARATING.sub(",", s)
    s = _DEGREES.sub("°", s)
    s = _SEGMENT.sub(r"\1", s)
    s = _REPEATING.sub(_repeating, s)
    for written, sign in _ASCII_RELATIONS:
        s = s.replace(written, sign)
    s = _COMMAND.sub(lambda m: _COMMANDS[m[1]], s)
    s = _ROOT_SIGN.sub(lambda m: f"\\sqrt{{{m[1] or m[2]}}}" if m[1] or m[2] else "\\sqrt", s)
    s = re.sub(r"\s+", " ", s).rstrip(" .,;:?\\⏎").lstrip(" ,;:=≈")
    match = _SCIENTIFIC.fullmatch(s)
    return f"{match[1]}*10^({match[2]})" if match else s


def _vulgar(match: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", match[0]).partition("⁄")
    return f"\\frac{{{above}}}{{{below}}}"


def _repeating(match: re.Match[str]) -> str:
    """0.1\\overline{6} as an exact fraction."""
    whole, fixed, cycle = match[1] or "0", match[2], match[3]
    scale = 10 ** len(fixed)
    nines = (10 ** len(cycle) - 1) * scale
    above = (int(whole) * scale + int(fixed or 0)) * (nines // scale) + int(cycle)
    return f"(\\frac{{{above}}}{{{nines}}})"
