"""Families `shopping` and `travel`: several products are summed, then something is added, taken off or divided.

`shopping`: prices stand in one shuffled list and amounts in another, so each price must be looked up by its name.
`travel`: speed times hours, leg after leg; then the miles left, or the hours they take.

Usage: `SHOPPING.tell(SHOPPING.draw(dice, 4, scale), dice).question`
"""

from __future__ import annotations

from thinkfast.data.dice import Dice
from thinkfast.data.sketch import Family, Move, Scale, Sketch, Telling, boxed, equation
from thinkfast.data.words import NAMES, THEN, THINGS, VEHICLES


def draw_items(dice: Dice, level: int, scale: Scale) -> tuple[list[Move], int, int]:
    """Draw n products (2n - 1 steps with their sums) so that 0..3 steps are left; returns moves, total, steps left."""
    n = dice.between(max(1, (level - 1) // 2), (level + 1) // 2)
    items: list[Move] = [("item", dice.between(*scale.small), dice.between(*scale.large)) for _ in range(n)]
    return items, sum(x * y for _, x, y in items), level - (2 * n - 1)


def draw_shopping(dice: Dice, level: int, scale: Scale) -> Sketch:
    """Items, then some of: coupon, delivery, change."""
    while True:
        moves, total, left = draw_items(dice, level, scale)
        for kind in sorted(dice.some(("coupon", "delivery", "pay"), left)):
            x = dice.between(*scale.plain)
            if kind == "coupon":
                total -= x
            elif kind == "delivery":
                total += x
            else:
                x += total
                total = x - total
            moves.append((kind, x, 0))
            if not 2 <= total <= scale.cap:
                break
        if total >= 2 and max(x for _, x, _ in moves) <= scale.cap:
            return Sketch(
                "shopping", level, (dice.pick(NAMES), *dice.some(THINGS, len(moves) - left)), tuple(moves), total
            )


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def tell_shopping(sketch: Sketch, dice: Dice) -> Telling:
    """Shuffled price list (perhaps with a thing not bought), the purchase, the extras."""
    a, *things = sketch.words
    items = [(x, y, o) for (_, x, y), o in zip(sketch.moves, things, strict=False)]
    prices = [f"{o} cost {y} dollars each" for _, y, o in items]
    if dice.chance(0.6):
        aside = dice.pick([o for o in THINGS if o not in things])
        prices.append(f"{aside} cost {dice.between(2, 40)} dollars each")
    said = [f"{dice.pick(('At the shop', 'In a shop'))} {_and(list(dice.some(prices, len(prices))))}."]
    said.append(f"{a} {dice.pick(('buys', 'gets', 'needs'))} {_and([f'{x} {o}' for x, _, o in items])}.")
    plan = f"We need the price of {_and([f'{x} {o} at {y}' for x, y, o in items])} dollars."
    steps: list[str] = []
    total = 0
    for i, (x, y, o) in enumerate(items):
        steps.append(f"The {x} {o} at {y} dollars each cost {equation(x, '*', y)} dollars.")
        if i:
            steps.append(f"So far {a} has to pay {equation(total, '+', x * y)} dollars.")
        total += x * y
    ask = f"How many dollars does {a} pay?"
    for kind, x, _ in sketch.moves[len(items) :]:
        if kind == "coupon":
            said.append(dice.pick((f"A coupon takes {x} dollars off.", f"{a} has a coupon for {x} dollars.")))
            steps.append(f"The coupon takes off {x}, so {a} has to pay {equation(total, '-', x)} dollars.")
            total -= x
        elif kind == "delivery":
            said.append(
                dice.pick((f"The delivery costs {x} dollars more.", f"{a} also pays {x} dollars for delivery."))
            )
            steps.append(f"The delivery costs {x} more, so {a} has to pay {equation(total, '+', x)} dollars.")
            total += x
        else:
            said.append(dice.pick((f"{a} gives {x} dollars to the shop.", f"{a} had {x} dollars before.")))
            steps.append(f"{a} gives {x} dollars, so {equation(x, '-', total)} dollars are left.")
            total = x - total
            ask = f"How many dollars does {a} have left?"
    extras = len(sketch.moves) - len(items)
    after = f"After that there are {extras} changes." if extras > 1 else f"Then {a} pays."
    goal = f"The answer is the number of dollars that {a} {'has left' if ask.endswith('left?') else 'pays'} at the end."
    return Telling(" ".join([*said, ask]), " ".join([plan, after, goal, *steps, boxed(total)]))


def draw_travel(dice: Dice, level: int, scale: Scale) -> Sketch:
    """Legs, then some of: a walk, the miles left of the whole way, the hours for them."""
    while True:
        moves, total, left = draw_items(dice, level, scale)
        kinds = {0: (), 1: dice.pick((("walk",), ("way",))), 2: dice.pick((("walk", "way"), ("way", "hours")))}
        for kind in kinds.get(left, ("walk", "way", "hours")):
            x = dice.between(*scale.plain)
            if kind == "walk":
                total += x
                moves.append((kind, x, 0))
            elif kind == "hours":
                total //= moves[-1][2]
                moves.append((kind, moves[-1][2], 0))
            else:
                speed = dice.between(*scale.large)
                ahead = speed * dice.between(*scale.small) if left > 1 else x
                moves.append((kind, total + ahead, speed))
                total = ahead
        moves = [(kind, x, y if kind == "item" else 0) for kind, x, y in moves]
        if total >= 2 and max(x * max(y, 1) for _, x, y in moves) <= scale.cap:
            return Sketch("travel", level, (dice.pick(NAMES), dice.pick(VEHICLES)), tuple(moves), total)


def tell_travel(sketch: Sketch, dice: Dice) -> Telling:
    """Legs in order of time, then the extras."""
    a, vehicle = sketch.words
    legs = [(x, y) for kind, x, y in sketch.moves if kind == "item"]
    rest = sketch.moves[len(legs) :]
    when = dice.pick(("On Monday ", "In the morning ", ""))
    said = [f"{when}{a} starts a trip by {vehicle}."]
    steps: list[str] = []
    total = 0
    for i, (hours, speed) in enumerate(legs):
        then = dice.pick(THEN) if i else "First"
        pace = f"{then} the {vehicle} goes {speed} miles per hour for {hours} hours."
        said.append(dice.pick((pace, f"{then} the {vehicle} needs {hours} hours at {speed} miles per hour.")))
        steps.append(
            f"In {hours} hours at {speed} miles per hour the {vehicle} goes {equation(hours, '*', speed)} miles."
        )
        if i:
            steps.append(f"So far {a} has gone {equation(total, '+', hours * speed)} miles.")
        total += hours * speed
    ask = dice.pick((f"How many miles is the trip of {a}?", f"How many miles does {a} go?"))
    goal = "the number of miles for the trip"
    for kind, x, _ in rest:
        if kind == "walk":
            said.append(f"At the end {a} {dice.pick(('walks', 'goes'))} {x} more miles.")
            steps.append(f"{a} walks {x} more, so {a} has gone {equation(total, '+', x)} miles.")
            total += x
        elif kind == "way":
            said.append(dice.pick((f"The whole way is {x} miles.", f"{a} has to go {x} miles.")))
            steps.append(f"The whole way is {x} miles, so {equation(x, '-', total)} miles are left.")
            total, goal = x - total, "the number of miles that are left"
            ask = "How many miles are left?"
        else:
            said.append(f"For the miles that are left the {vehicle} goes {x} miles per hour.")
            steps.append(f"At {x} miles per hour this needs {equation(total, '/', x)} hours.")
            total, goal = total // x, "the number of hours for the miles that are left"
            ask = "How many more hours does the trip need?"
    parts = _and([f"{x} hours at {y}" for x, y in legs])
    plan = f"The trip of {a} by {vehicle} has {parts} miles per hour. We need {goal}."
    return Telling(" ".join([*said, ask]), " ".join([plan, "We add up the miles part by part.", *steps, boxed(total)]))


SHOPPING = Family("shopping", draw_shopping, tell_shopping)
TRAVEL = Family("travel", draw_travel, tell_travel)
