"""Family `factory`: facts with roles (machines, hours, broken ones, boxes, price, ...) in SHUFFLED sentences.

The order of the steps follows from the roles and not from the order of the sentences.

Usage: `FACTORY.tell(FACTORY.draw(dice, 4, scale), dice).question`
"""

from __future__ import annotations

from itertools import combinations

from thinkfast.data.dice import Dice
from thinkfast.data.sketch import Family, Move, Scale, Sketch, Telling, apply, boxed, divisors, equation
from thinkfast.data.words import NAMES, THINGS

ROLES = ("broken", "old", "boxes", "price", "cost", "share")
OPERATOR = {"hours": "*", "broken": "-", "old": "+", "boxes": "/", "price": "*", "cost": "-", "share": "/"}
SETS = {n: [s for s in combinations(ROLES, n) if "cost" not in s or "price" in s] for n in range(len(ROLES) + 1)}


def _extend(dice: Dice, kinds: tuple[str, ...], value: int, scale: Scale) -> tuple[list[Move], int] | None:
    """One try at numbers for `kinds`; None when an amount leaves the range or nothing divides it."""
    moves: list[Move] = []
    for kind in kinds:
        if OPERATOR[kind] == "/":
            choices = divisors(value, *scale.small)
            if not choices:
                return None
            x = dice.pick(choices)
        else:
            x = dice.between(*(scale.small if OPERATOR[kind] == "*" else scale.plain))
        value = apply(value, OPERATOR[kind], x)
        if not 2 <= value <= scale.cap:
            return None
        moves.append((kind, x, 0))
    return moves, value


def draw(dice: Dice, level: int, scale: Scale) -> Sketch:
    """Machines times output, times hours, then `level` - 2 roles in their fixed order."""
    while True:
        n, each = dice.between(*scale.small), dice.between(*(scale.small if dice.chance(0.5) else scale.large))
        done = _extend(dice, ("hours", *dice.pick(SETS[level - 2])), n * each, scale)
        if done is not None and n * each <= scale.cap:
            moves, answer = done
            return Sketch("factory", level, (dice.pick(NAMES), dice.pick(THINGS)), (("make", n, each), *moves), answer)


def tell(sketch: Sketch, dice: Dice) -> Telling:
    """Shuffled facts after the opening; the chain lists the numbers in their order, then one sentence per step."""
    a, o = sketch.words
    _, n, each = sketch.moves[0]
    facts = [dice.pick((f"Each machine makes {each} {o} per hour.", f"In one hour each machine makes {each} {o}."))]
    plan = [f"{n} machines", f"{each} {o} per hour"]
    steps = [f"The {n} machines make {equation(n, '*', each)} {o} per hour."]
    value, unit = n * each, o
    for kind, x, _ in sketch.moves[1:]:
        e = equation(value, OPERATOR[kind], x)
        if kind == "hours":
            facts.append(dice.pick((f"The machines work for {x} hours.", f"The work is done in {x} hours.")))
            plan.append(f"{x} hours")
            steps.append(f"In {x} hours they make {e} {o}.")
        elif kind == "broken":
            facts.append(dice.pick((f"The last {x} {o} are broken.", f"{a} finds {x} broken {o}.")))
            plan.append(f"minus {x} broken")
            steps.append(f"Without the {x} broken {o} there are {e} {o}.")
        elif kind == "old":
            facts.append(dice.pick((f"{a} adds {x} old {o}.", f"There are {x} old {o} from Monday.")))
            plan.append(f"plus {x} old")
            steps.append(f"With the {x} old {o} there are {e} {o}.")
        elif kind == "boxes":
            facts.append(dice.pick((f"{a} puts {x} {o} into each box.", f"Each box holds {x} {o}.")))
            plan.append(f"boxes of {x}")
            steps.append(f"Each box holds {x}, so there are {e} boxes.")
            unit = "boxes"
        elif kind == "price":
            facts.append(
                dice.pick((f"All the {unit} cost {x} dollars each.", f"{a} sells the {unit} for {x} dollars each."))
            )
            plan.append(f"{x} dollars each")
            steps.append(f"The {unit} cost {x} dollars each, so {a} gets {e} dollars.")
            unit = "dollars"
        elif kind == "cost":
            facts.append(dice.pick((f"{a} pays {x} dollars for the machines.", f"The machines cost {x} dollars.")))
            plan.append(f"minus {x} dollars")
            steps.append(f"The machines cost {x}, so {a} keeps {e} dollars.")
        else:
            facts.append(f"At the end {x} friends share the {unit} equally.")
            plan.append(f"divided by {x} friends")
            steps.append(f"The {x} friends share, so each friend gets {e} {unit}.")
        value = apply(value, OPERATOR[kind], x)
    asked = f"How many {unit} does {a} have at the end?"
    if sketch.moves[-1][0] == "share":
        asked = f"How many {unit} does each friend get?"
    opening = dice.pick((f"At work {a} has {n} machines.", f"In the factory of {a} there are {n} machines."))
    question = " ".join([opening, *dice.some(facts, len(facts)), asked])
    head = f"In the factory of {a} we need the number of {unit} at the end. The numbers in order are {', '.join(plan)}."
    return Telling(question, " ".join([head, *steps, boxed(value)]))


FACTORY = Family("factory", draw, tell)
