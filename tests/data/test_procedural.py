"""The procedural task: pure, disjoint by construction, exact, learnable in length."""

from __future__ import annotations

import re
import subprocess
import sys
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest

from thinkfast.data.procedural import BUCKETS, FAMILIES, LEVELS, TEST_DIFFICULTIES, bucket, draw, generate
from thinkfast.data.sketch import Sketch, apply, boxed, divisors, equation
from thinkfast.errors import InputError
from thinkfast.models.tokenizer import Tokenizer

TINY = Path(__file__).parents[2] / "src/thinkfast/assets/tiny"
STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
FROZEN = "28f316b196ed53a4a627235feee4663d2f26c64df2ae818b6a74d7b0c44e1d0c"
DIGEST = """
from hashlib import sha256
from thinkfast.data.procedural import generate
print(sha256("".join(repr(generate(i, s)) for s in ("train", "test") for i in range(40)).encode()).hexdigest())
"""


def test_same_problems_in_another_process_with_another_hash_seed() -> None:
    here = sha256("".join(repr(generate(i, s)) for s in ("train", "test") for i in range(40)).encode()).hexdigest()
    for hash_seed in ("1", "2"):
        env = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(TINY.parents[2])}
        done = subprocess.run([sys.executable, "-c", DIGEST], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == here


def test_frozen_digest() -> None:
    """The task that the shipped teacher was trained and scored on; a change here needs a new teacher."""
    texts = "".join(repr(generate(i, s)) for s in BUCKETS for i in range(300))
    assert sha256(texts.encode()).hexdigest() == FROZEN


def test_splits_are_disjoint() -> None:
    train = {draw(i, "train", 2 + i % 7)[0].signature() for i in range(20_000)}
    assert len(train) > 19_500
    for split in ("val", "test"):
        other = {draw(i, split)[0].signature() for i in range(2_000)}
        other |= {draw(i, split, 2)[0].signature() for i in range(2_000)}  # the smallest space of structures
        assert len(other) > 3_900
        assert not train & other


def test_split_is_decided_by_structure_and_not_by_seed() -> None:
    assert sorted(i for buckets in BUCKETS.values() for i in buckets) == list(range(100))
    for split, buckets in BUCKETS.items():
        assert all(bucket(draw(i, split, seed=seed)[0]) in buckets for i in range(50) for seed in (1, 2))


def test_wording_does_not_change_the_signature() -> None:
    sketch, dice = draw(3, "train", 4)
    family = next(f for f in FAMILIES if f.name == sketch.family)
    tellings = {family.tell(sketch, dice).question for _ in range(20)}
    assert len(tellings) > 1
    assert bucket(sketch) == bucket(Sketch(sketch.family, 99, sketch.words, sketch.moves, -1))


@pytest.mark.parametrize("level", LEVELS)
def test_every_step_is_true_and_the_boxed_number_is_the_exact_answer(level: int) -> None:
    for index in range(400):
        problem = generate(index, "train", level)
        assert problem.solution is not None
        assert problem.answer is not None
        steps = STEP.findall(problem.solution)
        assert len(steps) == level == problem.level
        for a, op, b, c in steps:
            assert apply(int(a), op, int(b)) == int(c)
            assert 0 <= int(c) <= 9999
        assert problem.solution.endswith(boxed(int(problem.answer)))
        assert problem.solution.count("\\boxed") == 1


def test_each_step_uses_only_numbers_asked_or_computed() -> None:
    """What the chain computes with was given in the question or made by an earlier step (fractions are words)."""
    words = {"2": "half", "3": "third", "4": "fourth", "5": "fifth"}
    for index in range(2_000):
        problem = generate(index, "train")
        known = set(re.findall(r"\d+", problem.question))
        known |= {digit for digit, word in words.items() if word in problem.question}
        for number, (a, _, b, c) in enumerate(STEP.findall(problem.solution or "")):
            full_boxes = problem.subject == "sharing" and number == (problem.level or 0) - 2
            assert b in known, problem
            assert a in known or full_boxes, problem
            known |= {a, c}


def test_steps_depend_on_one_another() -> None:
    """All but the products of separate groups use an earlier result: at least every other step."""
    for index in range(500):
        steps = STEP.findall(generate(index, "train", 6).solution or "")
        dependent = sum(before[3] in (now[0], now[2]) for before, now in pairwise(steps))
        assert dependent >= 2


def test_relation_facts_are_shuffled() -> None:
    """The known amount stands anywhere among the facts, and the path's order is not the order of the sentences."""
    places: list[int] = []
    in_order = 0
    for problem in (generate(i, "train", 5) for i in range(800)):
        if problem.subject == "compare":
            facts = problem.question.split(". ")[1:-1]
            known = [bool(re.fullmatch(r"\w+ has \d+ \w+", fact)) for fact in facts]
            assert sum(known) == 1
            places.append(known.index(True))
            told = [fact.split()[0] for fact in facts]
            back = re.findall(r"(\w+) from", problem.solution or "")
            in_order += [name for name in told if name in back] == back[::-1]
    assert len(places) > 50
    assert set(places) >= {0, 1, 2, 3, 4}
    assert in_order < len(places) / 4


def test_all_families_and_mixture_occur() -> None:
    problems = [generate(i, "test") for i in range(400)]
    assert {p.subject for p in problems} == {family.name for family in FAMILIES}
    assert {p.level for p in problems} == set(TEST_DIFFICULTIES)
    assert len({p.id for p in problems}) == len({p.question for p in problems}) == 400


def test_chain_lengths() -> None:
    tokenizer = Tokenizer.from_dir(TINY)
    lengths = {
        level: [len(tokenizer.encode(generate(i, "test", level).solution or "")) for i in range(100)]
        for level in LEVELS
    }
    for level in (3, 4, 5, 6, 7):
        assert min(lengths[level]) >= 100
        assert max(lengths[level]) <= 300
    assert min(lengths[2]) >= 70
    assert max(lengths[8]) <= 340
    means = [sum(n) / len(n) for n in lengths.values()]
    assert means == sorted(means)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InputError, match="dev"):
        generate(0, "dev")
    with pytest.raises(InputError, match="difficulty 9"):
        generate(0, "train", 9)


def test_arithmetic_helpers() -> None:
    assert equation(3, "*", 14) == "3 * 14 = 42"
    assert divisors(12, 2, 9) == [2, 3, 4, 6]
    assert divisors(7, 2, 9) == []
    for a, op, b in ((7, "/", 2), (7, "^", 2)):
        with pytest.raises(ValueError, match="not an exact step"):
            apply(a, op, b)
