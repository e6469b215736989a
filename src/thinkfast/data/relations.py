"""Families `compare` and `ages`: people tied by relations whose sentences are SHUFFLED, with one known amount.

The solver must find the order of dependency: the chain first walks back from the person asked for to the known one
("Mia from Tom"), then computes forward. One more person hangs off the path as a distractor.

Usage: `COMPARE.tell(COMPARE.draw(dice, 4, scale), dice).question`
"""

from __future__ import annotations

from dataclasses import dataclass

from thinkfast.data.dice import Dice
from thinkfast.data.sketch import Family, Move, Scale, Sketch, Telling, apply, boxed, divisors, equation
from thinkfast.data.words import NAMES, THINGS

OPERATOR = {"more": "+", "fewer": "-", "times": "*", "part": "/"}
PARTS = {2: "half", 3: "a third", 4: "a fourth", 5: "a fifth"}


@dataclass(frozen=True, slots=True)
class RelationWords:
    """Phrases of one relation family; {p} is put in relation to {q} by {x} (or {f}, a fraction), {o} the object."""

    opening: tuple[str, ...]
    known: str
    relations: dict[str, tuple[str, ...]]
    ask: str
    ask_sum: str
    need: str
    given: str
    steps: dict[str, str]
    unit: str


COMPARE_WORDS = RelationWords(
    opening=("Some friends count their {o}.", "At the end of the day some friends count their {o}."),
    known="{p} has {x} {o}.",
    relations={
        "more": ("{p} has {x} more {o} than {q}.", "{p} has as many {o} as {q} plus {x} more."),
        "fewer": ("{p} has {x} fewer {o} than {q}.", "{p} has as many {o} as {q} minus {x}."),
        "times": ("{p} has {x} times as many {o} as {q}.", "{p} has {x} times the {o} of {q}."),
        "part": ("{p} has {f} as many {o} as {q}.", "{p} has {f} of the number that {q} has."),
    },
    ask="How many {o} does {p} have?",
    ask_sum="How many {o} do {p} and {q} have together?",
    need="We need the number of {o} that {p} has.",
    given="The number of {p} is given, so we start with {p} and go back to {q}. {p} has {x} {o}.",
    steps={
        "more": "{p} has {x} more than {q}, so {p} has {e} {o}.",
        "fewer": "{p} has {x} fewer than {q}, so {p} has {e} {o}.",
        "times": "{p} has {x} times as many as {q}, so {p} has {e} {o}.",
        "part": "{p} has {f} as many as {q}, so {p} has {e} {o}.",
    },
    unit="{o}",
)

AGES_WORDS = RelationWords(
    opening=("Some friends talk about their age.", "At the end of the day some friends talk about their age."),
    known="{p} is {x} years old.",
    relations={
        "more": ("{p} is {x} years older than {q}.", "{p} was born {x} years before {q}."),
        "fewer": ("{p} is {x} years younger than {q}.", "{p} was born {x} years after {q}."),
        "times": ("{p} is {x} times as old as {q}.", "{p} has {x} times the age of {q}."),
        "part": ("{p} is {f} as old as {q}.", "{p} has {f} of the age of {q}."),
    },
    ask="How old is {p}?",
    ask_sum="How old are {p} and {q} together?",
    need="We need the age of {p} in years.",
    given="The age of {p} is given, so we start with {p} and go back to {q}. {p} is {x} years old.",
    steps={
        "more": "{p} is {x} older than {q}, so {p} is {e} years old.",
        "fewer": "{p} is {x} younger than {q}, so {p} is {e} years old.",
        "times": "{p} is {x} times as old as {q}, so {p} is {e} years old.",
        "part": "{p} is {f} as old as {q}, so {p} is {e} years old.",
    },
    unit="years",
)


def draw_relations(dice: Dice, level: int, scale: Scale) -> tuple[tuple[Move, ...], int]:
    """Moves: the known value, then a relation per step; the last step may be the sum with an earlier person."""
    value = dice.between(*scale.plain)
    values = [value]
    moves: list[Move] = [("known", value, 0)]
    with_sum = level > 2 and dice.chance(0.3)
    while len(moves) <= level - with_sum:
        kind = dice.pick(("more", "more", "fewer", "fewer", "times", "times", "part"))
        if kind == "part":
            choices = divisors(value, 2, 5)
            if not choices:
                continue
            x = dice.pick(choices)
        else:
            x = dice.between(*(scale.small if kind == "times" else scale.plain))
        after = apply(value, OPERATOR[kind], x)
        if 2 <= after <= scale.cap:
            moves.append((kind, x, 0))
            values.append(after)
            value = after
    if with_sum:
        other = dice.below(len(values) - 1)
        moves.append(("sum", other, 0))
        value += values[other]
    return tuple(moves), value


def tell_relations(sketch: Sketch, dice: Dice, words: RelationWords) -> Telling:
    """Shuffled facts after an opening; chain = dependency order found backwards, then one sentence per step."""
    *people, o = sketch.words
    moves = sketch.moves
    path = [m for m in moves if m[0] != "sum"]
    facts = [words.known.format(p=people[0], x=path[0][1], o=o)]
    values = [path[0][1]]
    steps: list[str] = []
    for i, (kind, x, _) in enumerate(path[1:], start=1):
        p, q, f = people[i], people[i - 1], PARTS.get(x, "")
        facts.append(dice.pick(words.relations[kind]).format(p=p, q=q, x=x, f=f, o=o))
        e = equation(values[-1], OPERATOR[kind], x)
        steps.append(words.steps[kind].format(p=p, q=q, x=x, f=f, o=o, e=e))
        values.append(apply(values[-1], OPERATOR[kind], x))
    last = people[len(path) - 1]
    if dice.chance(0.5):  # a person nobody needs: related to the path, never on it
        aside = dice.pick([name for name in NAMES if name not in people])
        kind = dice.pick(("more", "times"))
        text = dice.pick(words.relations[kind])
        facts.append(text.format(p=aside, q=dice.pick(people[: len(path)]), x=dice.between(2, 9), o=o))
    asked = words.ask.format(p=last, o=o)
    answer = values[-1]
    if moves[-1][0] == "sum":
        other = moves[-1][1]
        asked = words.ask_sum.format(p=last, q=people[other], o=o)
        steps.append(f"Together they have {equation(answer, '+', values[other])} {words.unit.format(o=o)}.")
        answer += values[other]
    back = [f"{people[i]} from {people[i - 1]}" for i in range(len(path) - 1, 0, -1)]
    plan = f"{words.need.format(p=last, o=o)} We get {', '.join(back)}."
    given = words.given.format(p=people[0], q=last, x=path[0][1], o=o)
    question = " ".join([dice.pick(words.opening).format(o=o), *dice.some(facts, len(facts)), asked])
    return Telling(question, " ".join([plan, given, *steps, boxed(answer)]))


def _family(name: str, words: RelationWords, objects: tuple[str, ...], fixed: Scale | None = None) -> Family:
    def draw(dice: Dice, level: int, scale: Scale) -> Sketch:
        moves, answer = draw_relations(dice, level, fixed or scale)
        people = sum(kind != "sum" for kind, _, _ in moves)
        return Sketch(name, level, (*dice.some(NAMES, people), dice.pick(objects)), moves, answer)

    def tell(sketch: Sketch, dice: Dice) -> Telling:
        return tell_relations(sketch, dice, words)

    return Family(name, draw, tell)


COMPARE = _family("compare", COMPARE_WORDS, THINGS)
# People's ages stay believable, so this family grows in steps but not in numbers.
AGES = _family("ages", AGES_WORDS, ("years",), Scale(small=(2, 5), large=(2, 9), plain=(2, 40), cap=120))
