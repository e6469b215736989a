"""The procedural task: worded problems with dependent steps, a written chain of thought and an exact answer.

Why: the embedded teacher `tiny` needs a task that costs no download, can be graded exactly, has difficulty as a
parameter, and on which a small model slips at random steps, so that more samples find more answers.

Splits are disjoint by construction: a problem's structural signature (family, names, objects, ordered numbers;
independent of wording, sentence order and distractors) is hashed to one of 100 buckets; every bucket belongs to one
split, and a sampler redraws until the bucket is its own.

Usage: `generate(0, "train", difficulty=4)`
"""

from __future__ import annotations

from hashlib import blake2b

from thinkfast.data.bundles import SHOPPING, TRAVEL
from thinkfast.data.dice import Dice
from thinkfast.data.factory import FACTORY
from thinkfast.data.problems import Problem
from thinkfast.data.relations import AGES, COMPARE
from thinkfast.data.sharing import SHARING
from thinkfast.data.sketch import Family, Scale, Sketch
from thinkfast.data.walks import STOCK, TANK
from thinkfast.errors import InputError

SEED = 20339
FAMILIES: tuple[Family, ...] = (STOCK, COMPARE, SHOPPING, TRAVEL, SHARING, AGES, TANK, FACTORY)
BUCKETS = {"test": range(10), "val": range(10, 20), "train": range(20, 100)}

# Number sizes per difficulty: the second half of the difficulty, beside the number of dependent steps.
SCALES: dict[int, Scale] = {
    2: Scale(small=(2, 9), large=(2, 20), plain=(2, 40), cap=300),
    3: Scale(small=(2, 9), large=(2, 25), plain=(2, 60), cap=400),
    4: Scale(small=(2, 9), large=(3, 30), plain=(3, 80), cap=600),
    5: Scale(small=(2, 9), large=(3, 40), plain=(5, 99), cap=999),
    6: Scale(small=(2, 9), large=(5, 60), plain=(5, 150), cap=1500),
    7: Scale(small=(2, 9), large=(11, 80), plain=(11, 250), cap=2500),
    8: Scale(small=(2, 9), large=(11, 99), plain=(11, 300), cap=3000),
}
LEVELS = tuple(SCALES)

# Mixtures of the named splits: a difficulty is drawn uniformly from the tuple, so repeat one to weigh it more.
TRAIN_DIFFICULTIES = (2, 3, 4, 5, 6, 7, 8)
VAL_DIFFICULTIES = (3, 4, 5)
TEST_DIFFICULTIES = (3, 4, 5)
MIXTURES = {"train": TRAIN_DIFFICULTIES, "val": VAL_DIFFICULTIES, "test": TEST_DIFFICULTIES}


def bucket(sketch: Sketch) -> int:
    """The signature's bucket, 0..99: decides the split whatever the wording."""
    return int.from_bytes(blake2b(sketch.signature(), digest_size=8).digest(), "little") % 100


def draw(index: int, split: str, difficulty: int | None = None, seed: int = SEED) -> tuple[Sketch, Dice]:
    """The sketch of one problem and the dice left over for its wording."""
    if split not in BUCKETS:
        raise InputError(f"unknown split {split!r}", remedy=f"use one of {', '.join(sorted(BUCKETS))}")
    if difficulty is not None and difficulty not in SCALES:
        raise InputError(f"difficulty {difficulty} is out of range", remedy=f"use {LEVELS[0]}..{LEVELS[-1]}")
    dice = Dice.of(seed, split, difficulty, index)
    level = dice.pick(MIXTURES[split]) if difficulty is None else difficulty
    wanted = BUCKETS[split]
    family = dice.pick(FAMILIES)
    while True:
        sketch = family.draw(dice, level, SCALES[level])
        if bucket(sketch) in wanted:
            return sketch, dice


def generate(index: int, split: str, difficulty: int | None = None, seed: int = SEED) -> Problem:
    """Problem `index` of a split: a pure function of its arguments, equal in every process.

    `difficulty` (2..8) is the number of dependent steps and sets number sizes; None draws it from the split's mixture.
    Raises InputError for an unknown split or difficulty.
    """
    sketch, dice = draw(index, split, difficulty, seed)
    telling = FAMILIES_BY_NAME[sketch.family].tell(sketch, dice)
    return Problem(
        id=f"tiny-{split}-{difficulty or 'mix'}-{index:07d}{'' if seed == SEED else f'-seed{seed}'}",
        question=telling.question,
        answer=str(sketch.answer),
        solution=telling.chain,
        source="tiny",
        level=sketch.level,
        subject=sketch.family,
    )


FAMILIES_BY_NAME = {family.name: family for family in FAMILIES}
