"""Do the report's intervals hold what they promise? Synthetic sample logs with a known truth, 2,000 of each kind.

A log is made as a run would leave it: problems of differing hardness and spread of wrong answers, chains with keys,
scores that know a little, seconds. Its truth is that of the population of problems, from one enormous log. Every
interval of the report is computed from each log by the report's own code, and counted where it holds the truth.

    python benchmarks/interval_coverage.py --simulations 2000 --out results/interval-coverage.json
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
from publish import publish

from thinkfast.judge.voters import VOTERS
from thinkfast.report.chains import Chains
from thinkfast.report.curves import coverage_by_second, vote_by_second
from thinkfast.report.intervals import bootstrap, paired, sign_test
from thinkfast.report.metrics import coverage_at_k, pass_at_k, vote_at_k, voter_at_k

N, K, PROBLEMS, WRONG = 8, 4, 100, 4
SECONDS = 0.8


def make(rng: np.random.Generator, problems: int, edge: float = 0.0) -> Chains:
    """A log of N chains a problem; `edge` makes a system better on the same kind of problems."""
    skill = np.clip(rng.beta(1.2, 0.9, problems) + edge, 0, 1)
    spread = rng.dirichlet(np.full(WRONG, 0.6), problems).cumsum(1)
    right = rng.random((problems, N)) < skill[:, None]
    silent = ~right & (rng.random((problems, N)) < 0.1)
    wrong = (rng.random((problems, N, 1)) > spread[:, None]).sum(-1).clip(max=WRONG - 1) + 1
    key = np.where(silent, -1, np.where(right, 0, wrong))
    score = np.clip(0.5 + 0.15 * (2 * right - 1) + 0.2 * rng.standard_normal((problems, N)), 0.01, 0.99)
    seconds = rng.gamma(4.0, 0.25, (problems, N))
    order = np.lexsort((seconds.ravel(), np.repeat(np.arange(problems), N)))
    # Already the arrays that Chains.build makes of rows; a test of Chains holds that it does.
    return Chains(
        np.repeat(np.arange(problems), N)[order],
        key.ravel()[order].astype(np.int64),
        right.ravel()[order].astype(np.int8),
        seconds.ravel()[order],
        tuple(map(str, range(problems))),
        {"score": score.ravel()[order], "certainty": score.ravel()[order]},
    )


def figures(chains: Chains) -> dict[str, np.ndarray]:
    """Every figure of the report, per problem."""
    at = np.array([SECONDS])
    return {
        f"pass@{K}": coverage_at_k(chains, K),
        **{
            f"{name}@{K}": voter_at_k(chains, K, VOTERS[name]) for name in ("majority", "weighted", "best", "certainty")
        },
        f"coverage in {SECONDS} s": coverage_by_second(chains, at)[:, 0],
        **{
            f"{name} in {SECONDS} s": vote_by_second(chains, at, VOTERS[name])[:, 0]
            for name in ("majority", "weighted")
        },
    }


def enumerations(rng: np.random.Generator, cases: int) -> dict[str, float]:
    """The largest error of pass@k and of every voter's @k against all subsets, one by one."""
    from thinkfast.judge.vote import cast_votes

    worst = {"pass@k": 0.0, **{f"{name}@k": 0.0 for name in VOTERS}}
    for _ in range(cases):
        n = int(rng.integers(1, 8))
        k = int(rng.integers(1, n + 1))
        keys, values = rng.integers(-1, 3, n), rng.random(n)
        subsets = list(itertools.combinations(range(n), k))
        truth = float(np.mean([any(keys[i] == 0 for i in s) for s in subsets]))
        worst["pass@k"] = max(worst["pass@k"], abs(pass_at_k(n, int((keys == 0).sum()), k) - truth))
        names = [None if key < 0 else str(key) for key in keys]
        for name, voter in VOTERS.items():
            votes = [cast_votes([names[i] for i in s], [float(values[i]) for i in s], voter=voter).key for s in subsets]
            found = vote_at_k(keys.astype(np.int64), keys == 0, k, voter=voter, values=values)
            worst[f"{name}@k"] = max(worst[f"{name}@k"], abs(found - float(np.mean([v == "0" for v in votes]))))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    rng = np.random.default_rng(options.seed)
    truth = {name: float(values.mean()) for name, values in figures(make(rng, 60_000)).items()}
    covered = dict.fromkeys(truth, 0)
    difference = alarms = signs = found = 0
    for s in range(options.simulations):
        log = make(rng, PROBLEMS)
        for name, values in figures(log).items():
            estimate = bootstrap(values, resamples=1000, seed=s)
            covered[name] += estimate.low <= truth[name] <= estimate.high
        # Two equal systems on the same problems: an honest test cries wolf in one of twenty.
        same = np.random.default_rng([options.seed, s])
        hard = same.beta(1.2, 0.9, PROBLEMS)
        one, other = (same.binomial(N, hard) / N for _ in range(2))
        better = same.binomial(N, np.clip(hard + 0.05, 0, 1)) / N
        duel = paired(one, other, resamples=1000, seed=s)
        difference += duel.low <= 0 <= duel.high
        alarms += duel.p_value < 0.05
        signs += sign_test(one, other) < 0.05
        found += paired(better, other, resamples=1000, seed=s).p_value < 0.05
    share = 1 / options.simulations
    result = {
        "what": "share of simulated logs whose 95 % interval holds the truth; wanted: 0.93 to 0.97",
        "simulations": options.simulations,
        "log": {"problems": PROBLEMS, "samples": N, "k": K, "seconds": SECONDS},
        "truth": truth,
        "coverage": {name: count * share for name, count in covered.items()}
        | {"paired difference": difference * share},
        "false alarms at 0.05": {"paired bootstrap": alarms * share, "sign test": signs * share},
        "power of the paired bootstrap for +5 points": found * share,
        "largest error against enumeration": enumerations(rng, 300),
        "wall_seconds": time.monotonic() - began,
    }
    publish(result, options.out, seed=options.seed)


if __name__ == "__main__":
    main()
