"""The task's word lists. Kept short on purpose: with every word here one token, the vocabulary of 512 suffices.

Usage: `dice.some(NAMES, 2)`
"""

from __future__ import annotations

NAMES = ("Tom", "Mia", "Ana", "Ben", "Sam", "Eva", "Leo", "Kim", "Max", "Zoe", "Dan", "Amy", "Jon", "Liz", "Ned", "Ivy")
THINGS = (
    "shells",
    "coins",
    "cards",
    "books",
    "stamps",
    "marbles",
    "apples",
    "pens",
    "beads",
    "cookies",
    "toys",
    "stones",
)
LIQUIDS = ("water", "milk", "juice", "oil")
VEHICLES = ("bus", "train", "truck", "ship")
THEN = ("Then", "Next", "Later", "After that")
