"""Families `stock` and `tank`: one running amount and a list of events, in order of time.

Both are the same walk over integers told with different words; a step is one addition, subtraction, product or exact
division, and a "bags" or "pump" event is two steps (a product, then the sum).

Usage: `STOCK.tell(STOCK.draw(dice, 4, scale), dice).question`
"""

from __future__ import annotations

from dataclasses import dataclass

from thinkfast.data.dice import Dice
from thinkfast.data.sketch import Family, Move, Scale, Sketch, Telling, apply, boxed, divisors, equation
from thinkfast.data.words import LIQUIDS, NAMES, THEN, THINGS

STEPS = {"add": 1, "sub": 1, "times": 1, "split": 1, "packs": 2, "drain": 2}
OPERATOR = {"add": "+", "sub": "-", "times": "*", "split": "/", "packs": "+", "drain": "-"}


def draw_walk(dice: Dice, level: int, scale: Scale) -> tuple[tuple[Move, ...], int]:
    """Moves (the first is the start value) that take exactly `level` steps, and the final amount."""
    value = dice.between(*scale.plain)
    moves: list[Move] = [("start", value, 0)]
    left = level
    while left:
        kind = dice.pick(("add", "sub", "times", "split", "packs", "packs", "drain", "drain"))
        if STEPS[kind] > left or kind == moves[-1][0]:
            continue
        x, y = dice.between(*scale.small), 0
        if kind in ("add", "sub"):
            x = dice.between(*scale.plain)
        elif kind in ("packs", "drain"):
            y = dice.between(*scale.large)
        elif kind == "split":
            choices = divisors(value, *scale.small)
            if not choices:
                continue
            x = dice.pick(choices)
        after = apply(value, OPERATOR[kind], x * y if y else x)
        if not 2 <= after <= scale.cap:
            continue
        moves.append((kind, x, y))
        value = after
        left -= STEPS[kind]
    return tuple(moves), value


@dataclass(frozen=True, slots=True)
class WalkWords:
    """The phrases of one walk family; fields {a} {b} people, {o} object, {x} {y} numbers, {v} the running amount."""

    start: tuple[str, ...]
    events: dict[str, tuple[str, ...]]
    distractor: tuple[str, ...]
    ask: tuple[str, ...]
    intro: str
    plan: dict[str, str]
    group: str
    steps: dict[str, str]


STOCK_WORDS = WalkWords(
    start=(
        "At the start {a} has {x} {o}.",
        "In the morning {a} has {x} {o}.",
        "On Monday {a} has {x} {o}.",
        "{a} has {x} {o}.",
    ),
    events={
        "add": ("{a} buys {x} {o}.", "{a} finds {x} more {o}.", "{b} gives {x} {o} to {a}."),
        "sub": ("{a} gives {x} {o} to {b}.", "{a} sells {x} {o}.", "{a} loses {x} {o}."),
        "times": ("{a} gets enough to have {x} times as many {o}.", "{a} now has {x} times as many {o} as before."),
        "split": (
            "{a} makes {x} equal piles and keeps only one pile.",
            "{a} shares the {o} into {x} equal piles and keeps one.",
        ),
        "packs": ("{a} buys {x} bags with {y} {o} in each bag.", "{a} gets {x} bags of {y} {o} each."),
        "drain": ("{a} gives {y} {o} to each of {x} friends.", "{a} sells {x} bags of {y} {o} each."),
    },
    distractor=("{b} has {x} {o} at home.", "{b} needs {x} more {o}."),
    ask=("How many {o} does {a} have now?", "How many {o} does {a} have at the end?"),
    intro="We need the number of {o} that {a} has at the end. At the start {a} has {x} {o}.",
    plan={
        "add": "plus {x}",
        "sub": "minus {x}",
        "times": "times {x}",
        "split": "divided by {x}",
        "packs": "plus {x} bags of {y}",
        "drain": "minus {x} bags of {y}",
    },
    group="The {x} bags of {y} are {e} {o}.",
    steps={
        "add": "{a} gets {x} more, so {a} has {e} {o}.",
        "sub": "{a} gives away {x}, so {a} has {e} {o}.",
        "times": "{a} has {x} times as many, so {a} has {e} {o}.",
        "split": "{a} keeps one of {x} piles, so {a} has {e} {o}.",
    },
)

TANK_WORDS = WalkWords(
    start=("At the start a tank holds {x} liters of {o}.", "In the morning a tank holds {x} liters of {o}."),
    events={
        "add": ("{a} adds {x} liters of {o}.", "{b} brings {x} more liters of {o}."),
        "sub": ("{a} takes {x} liters from the tank.", "{b} sells {x} liters of {o}.", "the tank loses {x} liters."),
        "times": (
            "{a} fills the tank until it holds {x} times as much {o}.",
            "the tank gets {x} times as full as before.",
        ),
        "split": (
            "{a} shares the {o} into {x} equal tanks and keeps only one.",
            "only one of {x} equal parts of the {o} is kept.",
        ),
        "packs": (
            "a pump adds {y} liters per minute for {x} minutes.",
            "for {x} minutes a pump brings {y} liters per minute.",
        ),
        "drain": (
            "a pump takes {y} liters per minute for {x} minutes.",
            "for {x} minutes the tank loses {y} liters per minute.",
        ),
    },
    distractor=("{b} has {x} liters of {o} at home.", "{b} needs {x} liters of {o}."),
    ask=("How many liters of {o} are in the tank now?", "How many liters does the tank hold at the end?"),
    intro="We need the liters of {o} in the tank at the end. At the start the tank holds {x} liters.",
    plan={
        "add": "plus {x}",
        "sub": "minus {x}",
        "times": "times {x}",
        "split": "divided by {x}",
        "packs": "plus {x} minutes of {y}",
        "drain": "minus {x} minutes of {y}",
    },
    group="The {x} minutes of {y} are {e} liters.",
    steps={
        "add": "The tank gets {x} more, so it holds {e} liters.",
        "sub": "The tank loses {x}, so it holds {e} liters.",
        "times": "The tank has {x} times as much, so it holds {e} liters.",
        "split": "The tank keeps one of {x} parts, so it holds {e} liters.",
    },
)


@dataclass(frozen=True, slots=True)
class Walked:
    """A told walk: question sentences so far, the plan's list, the chain's steps, and the final amount."""

    said: list[str]
    plan: str
    steps: list[str]
    value: int


def walk(moves: tuple[Move, ...], names: tuple[str, ...], dice: Dice, words: WalkWords) -> Walked:
    """Tell moves in order of time, perhaps with a distractor; the caller adds the question and the end of the chain."""
    a, b, o = names
    value = moves[0][1]
    said = [dice.pick(words.start).format(a=a, o=o, x=value)]
    plan: list[str] = []
    steps: list[str] = []
    aside = dice.between(1, len(moves) - 1) if dice.chance(0.4) else 0
    for i, (kind, x, y) in enumerate(moves[1:], start=1):
        if i == aside:
            said.append(dice.pick(words.distractor).format(b=b, o=o, x=dice.between(2, 99)))
        said.append(f"{dice.pick(THEN)} {dice.pick(words.events[kind]).format(a=a, b=b, o=o, x=x, y=y)}")
        plan.append(words.plan[kind].format(x=x, y=y))
        amount = x
        if kind in ("packs", "drain"):
            steps.append(words.group.format(x=x, y=y, o=o, e=equation(x, "*", y)))
            amount, kind = x * y, "add" if kind == "packs" else "sub"
        steps.append(words.steps[kind].format(a=a, o=o, x=amount, e=equation(value, OPERATOR[kind], amount)))
        value = apply(value, OPERATOR[kind], amount)
    changes = f"The changes are {', '.join(plan)}." if plan else "There are no changes before the end."
    return Walked(said, f"{words.intro.format(a=a, o=o, x=moves[0][1])} {changes}", steps, value)


def tell_walk(sketch: Sketch, dice: Dice, words: WalkWords) -> Telling:
    """A walk, and the question how much is there at the end."""
    a, b, o = sketch.words
    told = walk(sketch.moves, (a, b, o), dice, words)
    question = [*told.said, dice.pick(words.ask).format(a=a, o=o)]
    return Telling(" ".join(question), " ".join([told.plan, *told.steps, boxed(told.value)]))


def _family(name: str, words: WalkWords, objects: tuple[str, ...]) -> Family:
    def draw(dice: Dice, level: int, scale: Scale) -> Sketch:
        moves, answer = draw_walk(dice, level, scale)
        return Sketch(name, level, (*dice.some(NAMES, 2), dice.pick(objects)), moves, answer)

    def tell(sketch: Sketch, dice: Dice) -> Telling:
        return tell_walk(sketch, dice, words)

    return Family(name, draw, tell)


STOCK = _family("stock", STOCK_WORDS, THINGS)
TANK = _family("tank", TANK_WORDS, LIQUIDS)
