"""Family `sharing`: a walk that ends in a division with remainder, asking for the full boxes or for what is left.

The last division costs two written steps (what the full boxes hold, what is left); the number of full boxes is found
in the head, as the other steps' results are.

Usage: `SHARING.tell(SHARING.draw(dice, 4, scale), dice).question`
"""

from __future__ import annotations

from dataclasses import replace

from thinkfast.data.dice import Dice
from thinkfast.data.sketch import Family, Scale, Sketch, Telling, boxed, equation
from thinkfast.data.walks import STOCK_WORDS, draw_walk, walk
from thinkfast.data.words import NAMES, THINGS

WORDS = replace(
    STOCK_WORDS, intro="We need to put the {o} that {a} has at the end into boxes. At the start {a} has {x} {o}."
)


def draw(dice: Dice, level: int, scale: Scale) -> Sketch:
    """`level` - 2 steps of a walk, then boxes of f with some left over (f does not divide the amount)."""
    while True:
        moves, value = draw_walk(dice, level - 2, scale)
        f = dice.between(max(3, scale.small[0]), scale.small[1])
        if value > 2 * f and value % f:
            break
    left = dice.chance(0.5)
    end = ("left" if left else "full", f, 0)
    answer = value % f if left else value // f
    return Sketch("sharing", level, (*dice.some(NAMES, 2), dice.pick(THINGS)), (*moves, end), answer)


def tell(sketch: Sketch, dice: Dice) -> Telling:
    """The walk, then the boxes."""
    a, b, o = sketch.words
    asked, f, _ = sketch.moves[-1]
    told = walk(sketch.moves[:-1], (a, b, o), dice, WORDS)
    value = told.value
    full = value // f
    boxes = dice.pick(("At the end {a} puts the {o} into boxes of {f} {o} each.", "At the end each box gets {f} {o}."))
    ask = {
        "left": ("How many {o} are left over?", "How many {o} are not in a full box?"),
        "full": ("How many boxes are full?", "How many full boxes does {a} have?"),
    }[asked]
    question = [*told.said, boxes.format(a=a, o=o, f=f), dice.pick(ask).format(a=a, o=o)]
    end = (
        f"Each box gets {f}, and {full} full boxes hold {equation(full, '*', f)} {o}.",
        f"So {equation(value, '-', full * f)} {o} are left over, fewer than {f}.",
    )
    answer = value - full * f if asked == "left" else full
    return Telling(" ".join(question), " ".join([told.plan, *told.steps, *end, boxed(answer)]))


SHARING = Family("sharing", draw, tell)
