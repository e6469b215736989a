"""What early decisions save and what reallocation wins, from recorded logs played again on measured step times.

1. Early stopping: the chains of each problem are read one by one until the rule stops; accuracy and samples against
   the vote of all of them.
2. Equal seconds: all problems by one deadline; uniform allocation to the end, with early stopping, and the allocators
   by posterior and by learned gains, paired over problems. The mean of several random orders of every problem's
   samples.

Thresholds, confidence and gains come from the log of tiny_val, the figures from that of tiny_test.

    thinkfast eval -m tiny --problems tiny_val  --limit 400 unit=16 -n 32 --out runs/val-tiny
    thinkfast eval -m tiny --problems tiny_test --limit 500 unit=16 -n 48 --out runs/test-tiny
    python benchmarks/deciding.py tiny runs/val-tiny runs/test-tiny --out results/deciding-tiny.json
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from publish import publish

from thinkfast.data.prompts import prompt_tokens
from thinkfast.engine.llm import LLM
from thinkfast.engine.request import Chain
from thinkfast.judge.allocate import Learned, Promising
from thinkfast.judge.confidence import calibration_error
from thinkfast.judge.deciding import Posterior, Window, find_rule, never
from thinkfast.judge.tally import Ballot, Standing, StopRule, Tally, unbeatable
from thinkfast.judge.voters import VOTERS
from thinkfast.models.sources.resolve import find_model
from thinkfast.models.tokenizer import Tokenizer
from thinkfast.report.calibrate import calibrate, leaders
from thinkfast.report.intervals import bootstrap, paired, sign_test
from thinkfast.report.pacing import step_times
from thinkfast.report.replay import Recording, Setting, StepTimes, record, replay
from thinkfast.report.samples import SAMPLES, read_rows


def stopped(log: Recording, rule: StopRule, orders: int) -> dict[str, object]:
    """Accuracy and samples of `rule` against the vote of all samples, per problem, mean of random orders."""
    right, whole, used, tokens, spent = (np.zeros(len(log.problems)) for _ in range(5))
    for order in range(orders):
        for number, rows in enumerate(log.rows):
            mine = list(rows)
            random.Random(f"{order} {number}").shuffle(mine)
            tally, full = Tally(), Tally()
            ended = False
            for at, row in enumerate(mine):
                chain = Chain(str(number), at, (0,) * row.tokens, "", 0.0, None, "stop", 0.0, 0)
                ballot = Ballot(chain, row.answer, row.key, 0.0)
                full.add(ballot)
                spent[number] += row.tokens
                if not ended:
                    tally.add(ballot)
                    used[number] += 1
                    tokens[number] += row.tokens
                    ended = at + 1 < len(mine) and rule(tally, len(mine) - at - 1)
            good = log.right(number)
            right[number] += tally.leader is not None and tally.leader.key in good
            whole[number] += full.leader is not None and full.leader.key in good
    right, whole = right / orders, whole / orders
    duel = paired(right, whole)
    return {
        "accuracy": float(right.mean()),
        "accuracy_all_samples": float(whole.mean()),
        "lost_points": 100 * float(whole.mean() - right.mean()),
        "lost_points_interval": [-100 * duel.high, -100 * duel.low],
        "p_value": duel.p_value,
        "fewer_samples": 1 - float(used.sum()) / (orders * sum(map(len, log.rows))),
        "fewer_tokens": 1 - float(tokens.sum() / spent.sum()),
        "samples_per_problem": float(used.mean()) / orders,
    }


def at_equal_seconds(log: Recording, seconds: float, settings: dict[str, Setting], orders: int) -> dict[str, object]:
    """Each setting on all problems by one deadline, and paired against the first."""
    scores, spent = {}, {}
    for name, setting in settings.items():
        runs = [replay(log, seconds, setting, order) for order in range(orders)]
        scores[name] = np.mean([[answer.right for answer in run] for run in runs], axis=0)
        spent[name] = float(np.mean([sum(answer.begun for answer in run) for run in runs]))
    first = next(iter(settings))
    out: dict[str, object] = {"seconds": seconds}
    for name in settings:
        mean = bootstrap(scores[name])
        out[name] = {"accuracy": mean.value, "low": mean.low, "high": mean.high, "chains": spent[name]}
        if name != first:
            duel = paired(scores[name], scores[first])
            out[name] |= {  # type: ignore[operator]
                f"minus_{first}": duel.value,
                "interval": [duel.low, duel.high],
                "p_value": duel.p_value,
                "sign_test": sign_test(scores[name], scores[first]),
            }
    return out


def measured(file: Path | None, model: str, rows: int, prompts: list[list[int]]) -> StepTimes:
    """Step times of ``model`` from ``file``; measured here, and kept there, where it is not."""
    if file is not None and file.is_file():
        saved = json.loads(file.read_text())
        return StepTimes(tuple((int(r), float(s)) for r, s in saved["steps"]), saved["prefill"])
    times = step_times(LLM(model, rows, 512), prompts)
    if file is not None:
        file.write_text(json.dumps(asdict(times) | {"threads": torch.get_num_threads()}) + "\n")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("val", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--times", type=Path, help="step times measured before (JSON), to leave the machine alone")
    parser.add_argument("--rows", type=int, default=64, help="chains in flight at equal seconds")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--rule", help="the stop rule at equal seconds, chosen before; leaves out early stopping")
    parser.add_argument("--samples", default="2,4,6,10,16", help="budgets, as samples a problem that they allow")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    evaluations = {
        part: json.loads((folder / "eval.json").read_text())
        for part, folder in (("val", options.val), ("test", options.test))
    }
    tokenizer = Tokenizer.from_dir(find_model(options.model))
    asked = {
        part: {p["id"]: prompt_tokens(tokenizer, p["question"]) for p in evaluation["problems"]}
        for part, evaluation in evaluations.items()
    }
    times = measured(options.times, options.model, options.rows, list(asked["val"].values()))
    logs = {}
    for part, folder in (("val", options.val), ("test", options.test)):
        prompts = asked[part]
        ids = list(prompts)[: options.limit]
        lengths = {name: len(prompt) for name, prompt in prompts.items()}
        rows = read_rows(folder / SAMPLES)
        logs[part] = record(rows, options.model, ids, lengths, times, options.rows)
        if part == "val":
            calibration = calibrate(rows, str(evaluations[part]["config"]["problems"]))
    rules: dict[str, StopRule] = {
        "unbeatable": unbeatable,
        **{f"posterior:{t}": Posterior(t) for t in (0.8, 0.9, 0.95, 0.99)},
        **{f"window:{w}": Window(w) for w in (3, 4, 6)},
    }
    if options.rule:
        rules = {options.rule: find_rule(options.rule)}
    stopping = {
        part: {name: stopped(log, rule, options.orders) for name, rule in rules.items()}
        for part, log in logs.items()
        if not options.rule
    }
    # On val: the rule that saves most of those whose interval there holds no loss above half a point.
    safe = {n: f for n, f in stopping.get("val", {}).items() if round(f["lost_points_interval"][1], 6) <= 0.5}  # type: ignore[index]
    chosen = options.rule or max(safe, key=lambda name: safe[name]["fewer_samples"])  # type: ignore[arg-type,return-value]
    settings = {
        "uniform": Setting(stop_rule=never),
        "early stop": Setting(stop_rule=rules[chosen]),
        "posterior": Setting(stop_rule=rules[chosen], allocator=Promising(), calibration=calibration),
        "learned": Setting(stop_rule=rules[chosen], allocator=Learned(calibration.gains), calibration=calibration),
    }
    log = logs["test"]
    each = times.step(options.rows) / options.rows * float(np.mean([row.tokens for mine in log.rows for row in mine]))
    budgets = [round(k * each * len(log.problems), 1) for k in map(float, options.samples.split(","))]
    votes = leaders(log.rows, VOTERS["majority"])
    sure = np.array(
        [calibration.confidence(Standing("", "", v.count, v.share, 0, v.count), v.total) or 0.0 for v in votes]
    )
    good = np.array([v.right for v in votes])
    result = {
        "model": options.model,
        "problems": {part: len(each.problems) for part, each in logs.items()},
        "samples": {part: each.samples for part, each in logs.items()},
        "orders": options.orders,
        "rows": options.rows,
        "early_stopping": stopping,
        "chosen_on_val": chosen,
        "equal_seconds": [at_equal_seconds(log, seconds, settings, options.orders) for seconds in budgets],
        "calibration_on_test": {
            "votes": len(votes),
            "expected_error": calibration_error(sure, good),
            "expected_error_of_the_share": calibration_error(np.array([v.share for v in votes]), good),
        },
        "step_times": asdict(times),
        "threads": torch.get_num_threads(),
        "wall_seconds": time.monotonic() - began,
    }
    publish(result, options.out)


if __name__ == "__main__":
    main()
