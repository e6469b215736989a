"""Verdicts a second on real chains, through extraction, keys and the checker's workers.

Chains are the samples of evaluation folders, each judged against its problem's answer, and the reference solutions of
problem sets, each judged against its own answer and against another problem's (which most do not equal).

    python benchmarks/checker_rate.py --problems math_val500 math_train --limit 2000 --out results/checker-rate.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from publish import publish

from thinkfast.data.problems import load_problems
from thinkfast.judge.answer import judge
from thinkfast.judge.checker import Checker
from thinkfast.report.samples import SAMPLES, read_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="*", type=Path, help="evaluation folders")
    parser.add_argument("--problems", nargs="*", default=["math_val500"])
    parser.add_argument("--limit", type=int, default=2000, help="problems of each set")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sets: dict[str, list[tuple[str, str]]] = {}
    for name in options.problems:
        problems = [p for p in load_problems(name, options.limit) if p.solution and p.answer]
        golds = [str(p.answer) for p in problems]
        texts = [str(p.solution) for p in problems]
        sets[name] = [*zip(texts, golds, strict=True), *zip(texts, golds[1:] + golds[:1], strict=True)]
    for folder in options.logs:
        evaluation = json.loads((folder / "eval.json").read_text())
        answers = {p["id"]: str(p["answer"]) for p in evaluation["problems"]}
        sets[str(evaluation["config"]["problems"])] = [
            (row.text, answers[row.problem]) for row in read_rows(folder / SAMPLES) if row.text
        ]
    found: dict[str, dict[str, Any]] = {}
    with Checker(2) as checker:
        checker.warm()
        for name, pairs in sets.items():
            began = time.perf_counter()
            said = Counter(str(judge(text, gold, checker).correct) for text, gold in pairs)
            seconds = time.perf_counter() - began
            found[name] = {
                "verdicts": len(pairs),
                "seconds": seconds,
                "verdicts_per_second": len(pairs) / seconds,
                "yes_no_unknown": [said["True"], said["False"], said["None"]],
            }
    total, seconds = sum(each["verdicts"] for each in found.values()), sum(each["seconds"] for each in found.values())
    publish({"verdicts_per_second": total / seconds, "workers": 2, "sets": found}, options.out)


if __name__ == "__main__":
    main()
