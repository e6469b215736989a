"""How many problems some chain solves, by number of chains: unbiased coverage and majority from evaluations' logs.

    thinkfast eval -m tiny --problems tiny_test --limit 2000 unit=250 -n 64 device=cuda --max-batch 512 --out runs/cov
    python benchmarks/coverage.py runs/cov --out results/coverage-tiny.json

Several folders are told side by side; each keeps the provenance of its own run.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from publish import publish

from thinkfast.report.intervals import bootstrap
from thinkfast.report.metrics import coverage_at_k, majority_at_k
from thinkfast.report.results import load_results
from thinkfast.report.samples import SAMPLES, read_rows
from thinkfast.report.views import build_views


def told(folder: Path) -> list[dict[str, Any]]:
    """Every system of a run: mean accuracy, and for powers of two up to its chains coverage and majority [P]."""
    results = load_results(folder)
    run, found = results["eval"], []
    for view in build_views(results, read_rows(folder / SAMPLES)):
        counts = [2**e for e in range(view.complete.bit_length())]
        at = {
            str(k): {
                "coverage": asdict(bootstrap(coverage_at_k(view.drawn, k))),
                "majority": asdict(bootstrap(majority_at_k(view.drawn, k))),
            }
            for k in counts
        }
        found.append({"system": view.name, "problems": len(view.drawn.names), "at": at, "config": run["config"]})
        found[-1]["sampled"] = run["provenance"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders that thinkfast eval wrote")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    publish({"runs": [one for folder in options.runs for one in told(folder)]}, options.out)


if __name__ == "__main__":
    main()
