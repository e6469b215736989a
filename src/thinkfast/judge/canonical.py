"""The canonical key of an answer: the string under which equivalent answers vote together.

Why: a vote over raw strings splits 1/2, 0.5 and \\frac12; asking a computer algebra system for every pair is slow and
can hang. The key is a function of one answer, so "same key" is an equivalence by construction, and it is idempotent:
a key is its own key. Same key is meant to imply equal answers; different keys do not imply different answers (that is
the checker's question).

Policy, besides `units` and `expression`:

* Numbers are exact: 0.5 = 1/2 = \\frac12, 3.0 = 3, 007 = 7; 0.333 is not 1/3.
* `1,000` is a number when its groups have three digits and no bracket stands around it; `1, 000` is a list.
* Lists and sets have no order (`1,2` = `2, 1` = `\\{1,2\\}` = `x=1 or x=2`); tuples, intervals and matrices have.
* `x \\ge 3` is `[3,\\infty)`, `1 < x \\le 2` is `(1,2]`, `x < 0 or x > 1` a union.
* `x = 5` is 5, `y = 2x+1` is 2x+1; other equations are brought to one side without content.
* Expressions equal after expansion are one key: `(x+1)^2` = `x^2+2x+1`. The key does not see a required form.
* `A`, `(A)`, `\\text{(A)}`, `(A) 17` are one choice; letters keep their case, words do not (`Friday` = `friday`).
* What cannot be read is compared as text without spaces (`text:…`), and past 2,000 characters by its digest.

    canonical_key(r"\\dfrac{1}{2}\\text{ cm}")   # "1/2"
"""

from __future__ import annotations

import functools
import hashlib
import re
from fractions import Fraction

from thinkfast.judge.algebra import Algebra, Sum, Unreadable, primitive, rational, symbols
from thinkfast.judge.expression import MAX_DEPTH, NAMES, read
from thinkfast.judge.surface import clean
from thinkfast.judge.units import is_label, strip_units

MAX_CHARS = 2000
TEXT = "text:"
_TEXT_CHARS = 300

_OPEN, _CLOSE = "([{", ")]}"
_RELATIONS = "=≤≥<>≠"
_FLIP = {"≤": "≥", "≥": "≤", "<": ">", ">": "<", "=": "=", "≠": "≠"}
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_SPACED_THOUSANDS = re.compile(r"(?<![0-9.,/])[0-9]{1,3}(?: [0-9]{3})+(?![0-9,/])")
_MIXED = re.compile(r"(?<![0-9./^_}])([0-9]{1,9}) ([0-9]{1,9})/([0-9]{1,9})(?![0-9./^])")
_JOINED = re.compile(r"(?<![_0-9.])[0-9.]+ [0-9.]")  # "\\log_2 8" is fine, "1 2" is not
_OR = re.compile(
    r"(?<=[^A-Za-z\\]),? ?(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|(?<=[A-Z]) (?:and|or) (?=[A-Z](?![A-Za-z]))"
)
_MATRIX = re.compile(r"\\begin\{([pb]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_MATRIX_KEY = re.compile(r"matrix\((.*)\)", re.DOTALL)
_TIME = re.compile(r"([0-9]{1,2}) ?: ?([0-9]{2})(?: ?: ?([0-9]{2}))? ?(?:\\text\{)? ?([aApP])\.? ?[mM]\.?\}?")
_WORDS = re.compile(r"[A-Za-z]+(?:[ '-]+[A-Za-z]+)*")
_ABOUT = re.compile(r"^(?:about|approximately|roughly|exactly|equals?|is) (?=[0-9\\-])", re.IGNORECASE)
_TEXT_GROUP = re.compile(r"\\text\{([^{}]*)\}")
_WHOLE_TEXT = re.compile(r"\(?\\text\{([^{}]*)\}\)?")
_CHOICE = re.compile(r"(?:\\text\{)?\(?([A-J])\)(?:\}? +[^ *+/^=-].*|\}.*)?", re.DOTALL)
_COUNT = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBER_WORDS = {word: str(i) for i, word in enumerate(_COUNT.split())}
_WORDS_OF_THREE = "no yes odd all may red sun mon tue wed thu fri sat and not any she he her him its it"
_SHORT_WORDS = frozenset(_WORDS_OF_THREE.split())  # other lower-case words up to "xyz" are products of symbols


def canonical_key(answer: str) -> str:
    """The key of `answer` (any string, also hostile: a few milliseconds at most, linear in its length).

    Returns: a plain number as "3", "-1/2"; an expression as "2*3^(1/2)"; "(1,2)", "[0,∞)", "{1,2}", "x^2+y^2-1=0";
        "text:friday" for words; "" for an answer with nothing in it.
    """
    return _remembered(answer) if len(answer) <= 256 else _key(answer)


def _key(answer: str) -> str:
    stripped = answer.strip()
    if len(stripped) > MAX_CHARS:
        return _text_key(stripped)
    if stripped.startswith(TEXT):
        return _text_key(stripped[len(TEXT) :])
    s = clean(stripped)
    try:
        key = _whole(s)
    except Unreadable:
        return _text_key(s)
    return key if len(key) <= MAX_CHARS else _text_key(key)


_remembered = functools.lru_cache(maxsize=16384)(_key)  # a pure function of a short string


def _text_key(s: str) -> str:
    if len(s) > MAX_CHARS:
        return f"{TEXT}#{hashlib.sha256(''.join(s.split()).encode('utf-8', 'replace')).hexdigest()[:20]}"
    while "\\text" in s:
        s = _TEXT_GROUP.sub(r"\1", s) if _TEXT_GROUP.search(s) else s.replace("\\text", "")
    s = s if "\\" in s else s.lower()
    s = re.sub(r"\s+", " ", s)
    s = re.sub(r"(?<![a-z]) | (?![a-z])", "", s).strip(" .,;:?!'\"`")
    if len(s) > _TEXT_CHARS:
        return f"{TEXT}#{hashlib.sha256(s.encode('utf-8', 'replace')).hexdigest()[:20]}"
    return TEXT + s if s else ""


def _whole(s: str) -> str:
    time = _TIME.fullmatch(s)
    if time:
        return TEXT + ":".join([str(int(time[1])), *(t for t in time.group(2, 3) if t)]) + time[4].lower() + "m"
    whole = _WHOLE_TEXT.fullmatch(s)
    s = whole[1].strip(" .,;:") if whole else s
    s = _ABOUT.sub("", s)
    if not s:
        return ""
    choice = _CHOICE.fullmatch(s)
    if choice:
        return choice[1]  # "(C) 17", "C)": the letter says which
    words = s.strip("()")
    if _WORDS.fullmatch(words):
        key = _word(words)
        if key is not None:
            return key
    if not s.startswith(("(", "[", "{")):
        s = _outside_brackets(_THOUSANDS, s)
    s = _SPACED_THOUSANDS.sub(lambda m: m[0].replace(" ", ""), s)
    s = _OR.sub("∪" if any(c in s for c in "<>≤≥") and "and" not in s else ",", s)
    s = _MIXED.sub(r"(\1+\2/\3)", s)
    if _JOINED.search(s):
        raise Unreadable("two numbers side by side")
    return _list(s, Algebra())


def _word(s: str) -> str | None:
    """The key of an answer that is letters only; None when the letters are better read as symbols."""
    lower = s.lower()
    if lower in _NUMBER_WORDS:
        return _NUMBER_WORDS[lower]
    if lower in ("infinity", "oo"):
        return "∞"
    symbolic = len(s) == 1 or all(len(w) == 1 or w in NAMES for w in re.split("[ '-]+", s))
    if symbolic or (len(s) <= 3 and s.islower() and s.isalpha() and s not in _SHORT_WORDS):
        return None
    return _text_key(s)


def _outside_brackets(pattern: re.Pattern[str], s: str) -> str:
    """Take the commas out of matches that no round or square bracket encloses."""
    depth = [0]
    for c in s:
        depth.append(depth[-1] + (c in "([") - (c in ")]"))
    return pattern.sub(lambda m: m[0] if depth[m.start()] else m[0].replace(",", ""), s)


def _split(s: str, separators: str) -> tuple[list[str], str]:
    """Parts of `s` between separators outside all brackets, and the separators."""
    parts, seen, depth, start = [], [], 0, 0
    for at, c in enumerate(s):
        if c in _OPEN:
            depth += 1
            if depth > MAX_DEPTH:
                raise Unreadable("too deep")
        elif c in _CLOSE:
            depth -= 1
            if depth < 0:
                raise Unreadable("unbalanced")
        elif depth == 0 and c in separators:
            parts.append(s[start:at])
            seen.append(c)
            start = at + 1
    if depth:
        raise Unreadable("unbalanced")
    return [*parts, s[start:]], "".join(seen)


def _enclosed(s: str) -> bool:
    """Whether the first bracket closes at the last character."""
    if len(s) < 2 or s[0] not in _OPEN or s[-1] not in _CLOSE:
        return False
    depth = 0
    for at, c in enumerate(s):
        depth += (c in _OPEN) - (c in _CLOSE)
        if depth == 0:
            return at == len(s) - 1
    return False


def _list(s: str, a: Algebra) -> str:
    s = s.strip()
    for _ in range(8):
        if not (_enclosed(s) and s[0] == "{" and s[-1] == "}"):
            break
        s = s[1:-1].strip(" ,;")
    parts = [p for p in _split(s, ",;")[0] if p.strip()]
    if len(parts) > 100 or not parts:
        raise Unreadable("not a list")
    labels = {_split(p, _RELATIONS)[0][0].strip() if "=" in p else "" for p in parts}
    keep = len(labels - {""}) > 1  # "AB = 9, CD = 4" needs its labels, "x = 1, x = 2" does not
    keys = [k for part in parts for choice in _plus_minus(part) for k in [_component(choice, a, keep)]]
    return keys[0] if len(keys) == 1 else "{" + ",".join(sorted(keys)) + "}"


def _plus_minus(s: str) -> list[str]:
    if s.count("±") != 1 or "∓" in s:
        return [s]
    return [s.replace("±", "+"), s.replace("±", "-")]


def _component(s: str, a: Algebra, keep_label: bool = False) -> str:
    s = s.strip()
    matrix = _MATRIX.fullmatch(s) or _MATRIX_KEY.fullmatch(s)
    if matrix:
        return _matrix(matrix, a)
    parts, found = _split(s, "∪")
    if found:
        return "∪".join(sorted(_component(p, a) for p in parts))
    parts, found = _split(s, "≈")
    if found:
        return _component(next(p for p in [*parts, ""] if p.strip() or p == ""), a, keep_label)
    parts, found = _split(s, "∈")
    if len(found) == 1 and is_label(parts[0]):
        return _component(parts[1], a)
    parts, found = _split(s, _RELATIONS)
    if found:
        return _relation(parts, found, a, keep_label)
    if _enclosed(s) and s[0] in "([" and s[-1] in ")]":
        inner = _split(s[1:-1], ",;")[0]
        if len(inner) > 1:
            return s[0] + ",".join(_component(p, a) for p in inner) + s[-1]
        if s[0] + s[-1] == "()":
            return _component(s[1:-1], a)
    parts, found = _split(s, ":")
    if found:
        return ":".join(_plain_number(p, a) for p in parts)
    return _text_of(_value(s, a), a)


def _matrix(match: re.Match[str], a: Algebra) -> str:
    if len(match.groups()) == 2:
        rows = [row.split("&") for row in match[2].strip(" ⏎").split("⏎")]
    else:
        rows = [_split(row, ",")[0] for row in _split(match[1], ";")[0]]
    return "matrix(" + ";".join(",".join(_text_of(_value(c, a), a) for c in row) for row in rows) + ")"


def _value(s: str, a: Algebra) -> Sum:
    return read(strip_units(s), a)


def _text_of(value: Sum, a: Algebra) -> str:
    degree = ("deg", Fraction(1))
    if value and all(degree in monomial for monomial in value):
        value = {tuple(f for f in m if f != degree): c for m, c in value.items()}  # 30° is 30; tan(15°) keeps its °
    return a.text(value)


def _plain_number(s: str, a: Algebra) -> str:
    value = rational(_value(s, a))
    if value is None:
        raise Unreadable("a ratio of something else")
    return str(value)


def _relation(sides: list[str], signs: str, a: Algebra, keep_label: bool) -> str:
    sides = [side.strip() for side in sides]
    if set(signs) == {"="}:
        return _equation(sides, a, keep_label)
    values = [_value(side, a) for side in sides]
    if len(values) == 2 and signs != "=":
        difference, sign = primitive(a.add(values[0], values[1], -1))
        signs = signs if sign > 0 else _FLIP[signs]
        bound = _solved(difference, a)
        return _interval(bound, signs) if bound else f"{a.text(difference)}{signs}0"
    if set(signs) <= set(">≥"):
        values, signs = values[::-1], "".join(_FLIP[c] for c in reversed(signs))
    if not set(signs) <= set("<≤"):
        raise Unreadable("mixed relations")
    texts = [a.text(value) for value in values]
    if len(values) == 3 and is_label(sides[1]) and not symbols(values[0]) | symbols(values[2]):
        return f"{'[' if signs[0] == '≤' else '('}{texts[0]},{texts[2]}{']' if signs[1] == '≤' else ')'}"
    return texts[0] + "".join(sign + text for sign, text in zip(signs, texts[1:], strict=True))


def _equation(sides: list[str], a: Algebra, keep_label: bool) -> str:
    left, right = sides[:-1], sides[-1]
    if len(sides) == 2 and is_label(right) and not is_label(left[0]) and len(right) == 1:
        left, right = [right], left[0]
    if all(is_label(side) or not symbols(_value(side, a)) for side in left):
        value = _component(right, a)
        return f"{left[-1]}={value}" if keep_label and is_label(left[-1]) else value
    if len(sides) != 2:
        raise Unreadable("a chain of equations")
    difference, _ = primitive(a.add(_value(left[0], a), _value(right, a), -1))
    solution = _solved(difference, a)
    return solution or f"{a.text(difference)}=0"  # 2x = 10 is the answer 5


def _solved(difference: Sum, a: Algebra) -> str | None:
    """`c*x + d`, with one unknown in the first degree, as the text of -d/c."""
    unknown = symbols(difference)
    if len(unknown) != 1:
        return None
    first = ((unknown.pop(), Fraction(1)),)
    rest = {m: c for m, c in difference.items() if m != first}
    if first not in difference or symbols(rest):
        return None
    return _text_of(a.mul(rest, a.number(-1 / difference[first])), a)


def _interval(bound: str, sign: str) -> str:
    if sign == "≠":
        return f"(-∞,{bound})∪({bound},∞)"
    if sign in "<≤":
        return f"(-∞,{bound}{']' if sign == '≤' else ')'}"
    return f"{'[' if sign == '≥' else '('}{bound},∞)"
