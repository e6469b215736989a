"""Voters: how much each chain's vote weighs. One small protocol, and the five that come with it.

A voter reads one number a chain (a score, a certainty, a log-probability, or nothing) and turns the numbers of the
chains at hand into weights; the key with the greatest sum of weights wins (`judge.vote`). Weights may depend on who
else is there (ranks do), so a voter is asked anew for every vote. It works on whole batches of votes at once, which is
what makes unbiased weighted@k over thousands of random subsets affordable (`report.metrics`).

Shapes: S votes (subsets of chains), K chains of each.

Usage: ``Certainty().weights(np.array([[1.2, 0.7, 0.9]]))``; your own: docs/voters.md.
Source: self-certainty and Borda votes arXiv 2502.18581; weighted best-of-N arXiv 2206.02336.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from thinkfast.errors import InputError

Floats = NDArray[np.float64]
Reads = Literal["", "score", "certainty", "logprob"]
"""What a voter reads of a chain. score: of a reward model or verifier, in [0, 1]. certainty: `Chain.certainty`.
logprob: mean log-probability of the chain's tokens."""


class Voter(Protocol):
    """How chains are weighed."""

    @property
    def name(self) -> str:
        """As on the command line and in tables."""
        ...

    @property
    def reads(self) -> Reads:
        """The number it needs of every chain; "" for none."""
        ...

    def weights(self, values: Floats) -> Floats:
        """values [S, K] to weights [S, K], finite and not negative.

        A value of -inf is that of a chain without an answer: it can win nothing, and its weight only tells how much
        of the whole is silent. All other values are finite.
        """
        ...


@dataclass(frozen=True, slots=True)
class Majority:
    """Every chain weighs the same."""

    name: str = "majority"
    reads: Reads = ""

    def weights(self, values: Floats) -> Floats:
        return np.ones_like(values)


@dataclass(frozen=True, slots=True)
class Weighted:
    """Weighted best-of-N: a chain weighs its score; where all scores are 0, chains are counted."""

    name: str = "weighted"
    reads: Reads = "score"

    def weights(self, values: Floats) -> Floats:
        known = np.where(np.isinf(values), 0.0, values)
        if (known < 0).any():
            raise InputError(
                f"a score of {known.min():g}: a sum of scores needs scores of at least 0",
                remedy="pass probabilities, such as the sigmoid of a reward, or use the voter 'best'",
            )
        return np.where(known.sum(-1, keepdims=True) > 0, known, 1.0)


@dataclass(frozen=True, slots=True)
class Best:
    """Best-of-N: the chain with the highest value decides alone; of equal ones the one that finished first."""

    name: str = "best"
    reads: Reads = "score"

    def weights(self, values: Floats) -> Floats:
        out = np.zeros_like(values)
        np.put_along_axis(out, values.argmax(-1)[..., None], 1.0, axis=-1)
        return out


@dataclass(frozen=True, slots=True)
class Certainty:
    """Self-certainty without a second model: Borda votes, the chain of rank r of N weighs (N - r + 1) ** power.

    power 0 is the majority, a large one best-of-N. Of equal certainties the chain that finished first ranks higher.
    """

    power: float = 0.5
    name: str = "certainty"
    reads: Reads = "certainty"

    def weights(self, values: Floats) -> Floats:
        order = np.argsort(-values, axis=-1, kind="stable")
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.broadcast_to(np.arange(values.shape[-1]), values.shape), axis=-1)
        return np.asarray((values.shape[-1] - ranks) ** self.power, np.float64)


@dataclass(frozen=True, slots=True)
class Likelihood:
    """A chain weighs exp(mean token log-probability / temperature), the likeliest 1; large temperatures count."""

    temperature: float = 0.1
    name: str = "likelihood"
    reads: Reads = "logprob"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature {self.temperature}", remedy="give a positive temperature")

    def weights(self, values: Floats) -> Floats:
        # The largest weight is 1, so nothing underflows to 0/0.
        top = np.where(np.isinf(values), -np.inf, values).max(-1, keepdims=True)
        return np.exp((values - np.where(np.isinf(top), 0.0, top)) / self.temperature)


MAJORITY = Majority()
VOTERS: Mapping[str, Voter] = MappingProxyType(
    {voter.name: voter for voter in (MAJORITY, Weighted(), Best(), Certainty(), Likelihood())}
)


def find_voter(voter: str | Voter) -> Voter:
    """A voter by name, or the voter itself. Errors: InputError for an unknown name, with a suggestion."""
    if not isinstance(voter, str):
        return voter
    if voter not in VOTERS:
        close = difflib.get_close_matches(voter, VOTERS, n=1)
        guess = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(VOTERS)}"
        raise InputError(f"there is no voter {voter!r}", remedy=guess)
    return VOTERS[voter]
