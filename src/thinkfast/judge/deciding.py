"""When is a vote decided? Rules that stop a problem before all its chains are in.

* `unbeatable` (in `tally`): nothing can change any more. Risks nothing, saves little.
* `Posterior`: the probability that the leader is still the leader when all remaining chains have voted passes a
  threshold. The leader and one rival share a Beta(1, 1) prior, so the votes still to come between the two follow a
  beta-binomial; all of them are given to the two, which is the rival's best case. The rival that is likeliest to take
  over counts, and there is always one more that nobody has voted for yet.
* `Window`: the last so many chains all gave the leader's answer.

Weights of a voter count as votes of the same total, so a weighted vote is decided by the same rules.

Usage: ``solve(problem, seconds=5, stop_rule=Posterior(0.95))``; ``find_rule("posterior:0.9")``.
Source: Beta posterior arXiv 2305.11860 (adaptive-consistency), windows arXiv 2401.10480.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from thinkfast.errors import InputError
from thinkfast.judge.tally import StopRule, Tally, unbeatable

HORIZON = 64  # chains that a decision looks ahead at most; beyond, the answer hardly moves


def never(tally: Tally, remaining: int) -> bool:
    """The rule that never stops."""
    return False


@dataclass(frozen=True, slots=True)
class Posterior:
    """Stop when the leader stays the leader with probability ``threshold``, after at least ``least`` chains."""

    threshold: float = 0.95
    least: int = 3

    def __post_init__(self) -> None:
        if not 0.5 <= self.threshold < 1 or self.least < 1:
            raise InputError(
                f"a posterior rule with threshold {self.threshold} after {self.least} chains",
                remedy="give a threshold of at least 0.5 and below 1, such as posterior:0.95",
            )

    def __call__(self, tally: Tally, remaining: int) -> bool:
        return tally.total >= self.least and stays(tally, remaining) >= self.threshold


@dataclass(frozen=True, slots=True)
class Window:
    """Stop when the last ``size`` chains agree, with each other and with the leader."""

    size: int = 4

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"a window of {self.size} chains", remedy="give at least 1, such as window:4")

    def __call__(self, tally: Tally, remaining: int) -> bool:
        leader, last = tally.leader, list(tally.ballots)[-self.size :]
        return leader is not None and len(last) == self.size and all(b.key == leader.key for b in last)


def stays(tally: Tally, remaining: int) -> float:
    """Probability that the present leader leads after ``remaining`` more chains; 0 without a leader."""
    leader, *others = tally.standings() or (None,)
    if leader is None:
        return 0.0
    # A share of the total is a number of votes, whatever the voter's weights are in.
    mine, *rivals = (round(s.share * tally.total, 1) for s in (leader, *others[:1]))
    return min(_stays(mine, rival, min(remaining, HORIZON)) for rival in [*rivals, 0.0])


@lru_cache(maxsize=65536)
def _stays(mine: float, rival: float, remaining: int) -> float:
    """P(mine + X >= rival + (remaining - X)), X ~ BetaBinomial(remaining, mine + 1, rival + 1)."""
    needed = math.ceil((rival + remaining - mine) / 2)
    if needed <= 0:
        return 1.0
    a, b = mine + 1, rival + 1
    base = math.lgamma(remaining + 1) - math.lgamma(a) - math.lgamma(b) + math.lgamma(a + b)
    base -= math.lgamma(a + b + remaining)
    terms = (
        base + math.lgamma(x + a) + math.lgamma(remaining - x + b) - math.lgamma(x + 1) - math.lgamma(remaining - x + 1)
        for x in range(needed, remaining + 1)
    )
    return min(1.0, math.fsum(map(math.exp, terms)))


def find_rule(text: str) -> StopRule:
    """A rule by name: "unbeatable", "never", "posterior" or "posterior:0.9", "window" or "window:6".

    Errors: InputError for anything else.
    """
    name, _, value = text.partition(":")
    try:
        if name == "posterior":
            return Posterior(float(value)) if value else Posterior()
        if name == "window":
            return Window(int(value)) if value else Window()
    except ValueError as error:
        raise InputError(f"stop rule {text!r}: {error}", remedy="write posterior:0.95 or window:4") from error
    if text in ("unbeatable", "never"):
        return unbeatable if text == "unbeatable" else never
    raise InputError(f"there is no stop rule {text!r}", remedy="use unbeatable, never, posterior:0.95 or window:4")
