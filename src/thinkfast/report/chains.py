"""The chains of one system as arrays, the input of every metric.

Shapes: T chains in all, P problems.

Why: metrics need a few numbers per chain and their order of finishing; building them once from the sample log keeps the
maths free of strings and of None. Policy on unknown verdicts: a chain whose verdict is not known is neither dropped
(that would flatter whoever confuses the checker) nor silently wrong. Metrics take `unknown="wrong"` (default, the
lower end) or `"right"` (the upper end), and `unknown_share` is to be shown beside any figure where it is not 0.

    chains = Chains.build(["a", "a", "b"], ["5", None, "7"], [True, False, None], [0.1, 0.2, 0.3])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from thinkfast.errors import InputError
from thinkfast.judge.voters import Voter

Unknown = Literal["wrong", "right"]


@dataclass(frozen=True, slots=True)
class Chains:
    """One row per chain, sorted by problem, within a problem by the second of finishing (ties: as given).

    problem [T] int64 in 0..P-1; key [T] int64, a number per distinct answer, -1 without an answer; correct [T] int8:
    1 right, 0 wrong, -1 unknown; seconds [T] float64 since the run began; names: the P problems. values: what voters
    read, by name ("score", "certainty", "logprob"), each [T] float64, NaN where not known.
    """

    problem: NDArray[np.int64]
    key: NDArray[np.int64]
    correct: NDArray[np.int8]
    seconds: NDArray[np.float64]
    names: tuple[str, ...]
    values: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        problem: Sequence[str],
        key: Sequence[str | None],
        correct: Sequence[bool | None],
        seconds: Sequence[float],
        *,
        names: Sequence[str] | None = None,
        values: Mapping[str, Sequence[float | None]] | None = None,
    ) -> Self:
        """From columns of the sample log. `names` fixes the problems and their order, also those without a chain.

        Raises:
            InputError: columns of other lengths, a problem not in `names`, NaN or negative seconds.
        """
        columns = [problem, key, correct, seconds, *(values or {}).values()]
        if len({len(column) for column in columns}) != 1:
            raise InputError("columns of different lengths", remedy="give one entry per chain in every column")
        every = tuple(dict.fromkeys(problem if names is None else names))
        number = {name: p for p, name in enumerate(every)}
        stray = next((name for name in problem if name not in number), None)
        if stray is not None:
            raise InputError(f"problem {stray!r} is not in the problem set", remedy="pass the names of all problems")
        at = np.asarray(seconds, np.float64)
        if at.size and not (np.isfinite(at) & (at >= 0)).all():
            raise InputError(
                "seconds that are NaN or negative", remedy="repair the sample log: seconds since the start"
            )
        ids: dict[str, int] = {}
        keys = np.array([-1 if k is None else ids.setdefault(k, len(ids)) for k in key], np.int64)
        flags = np.array([-1 if c is None else int(c) for c in correct], np.int8)
        owner = np.array([number[name] for name in problem], np.int64)
        order = np.lexsort((at, owner))
        read = {
            name: np.array([np.nan if v is None else v for v in column], np.float64)[order]
            for name, column in (values or {}).items()
        }
        return cls(owner[order], keys[order], flags[order], at[order], every, read)

    @property
    def problems(self) -> int:
        return len(self.names)

    @property
    def unknown_share(self) -> float:
        """Part of the chains whose verdict is not known."""
        return float((self.correct < 0).mean()) if len(self.correct) else 0.0

    @property
    def counts(self) -> NDArray[np.int64]:
        """[P] chains per problem."""
        return np.bincount(self.problem, minlength=self.problems).astype(np.int64)

    def read(self, voter: Voter) -> NDArray[np.float64]:
        """[T] what `voter` reads; zeros where it reads nothing.

        Raises:
            InputError: the log does not hold it for every chain, or holds what is not finite.
        """
        if not voter.reads:
            return np.zeros(len(self.key))
        found = self.values.get(voter.reads, np.full(len(self.key), np.nan))
        if not np.isfinite(found).all():
            missing = float((~np.isfinite(found)).mean())
            raise InputError(
                f"{missing:.0%} of the chains have no finite {voter.reads!r}, which the voter {voter.name!r} reads",
                remedy="score the log first (thinkfast eval --verifier …), or leave that voter out",
            )
        return found

    def right(self, unknown: Unknown = "wrong") -> NDArray[np.bool_]:
        """[T] whether each chain counts as right."""
        return self.correct != 0 if unknown == "right" else self.correct > 0

    def key_right(self, unknown: Unknown = "wrong") -> NDArray[np.bool_]:
        """[T] whether each chain's key counts as right: any chain of the problem with that key does."""
        pairs = np.stack([self.problem, self.key])
        _, group = np.unique(pairs, axis=1, return_inverse=True)
        hits = np.bincount(group.ravel(), weights=self.right(unknown).astype(np.float64))
        return (hits[group.ravel()] > 0) & (self.key >= 0)

    def slices(self) -> list[slice]:
        """[P] the chains of each problem."""
        ends = np.cumsum(self.counts)
        return [slice(int(end - n), int(end)) for end, n in zip(ends, self.counts, strict=True)]
