"""What the verifier is worth: votes with and without it on held-out problems, and what scoring costs beside sampling.

python benchmarks/verifier.py tiny runs/test-tiny src/thinkfast/assets/tiny/verifier --out results/verifier-tiny.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from publish import publish

from thinkfast.engine.llm import LLM
from thinkfast.engine.request import SamplingParams
from thinkfast.judge.reward import Job
from thinkfast.judge.verifier import ABOUT, Verifier
from thinkfast.judge.voters import VOTERS
from thinkfast.models.loading import Loaded, load_model
from thinkfast.report.chains import Chains
from thinkfast.report.intervals import bootstrap, paired, sign_test
from thinkfast.report.metrics import voter_at_k
from thinkfast.report.samples import SAMPLES, read_rows
from thinkfast.report.verify import auc, score_rows

ROUNDS, PROMPTS, EACH = 5, 8, 8


def live_cost(loaded: Loaded, verifier: Verifier, questions: list[str]) -> dict[str, float]:
    """What scores cost where sampling has kept the hidden states: engines with and without in turns, medians."""
    prompts = [loaded.tokenizer.chat(question) for question in questions[:PROMPTS]]
    params = SamplingParams(n=EACH, max_tokens=300)
    plain, keeping = (LLM(loaded, PROMPTS * EACH, 512, keep_hidden=keep) for keep in (False, True))
    ratios, shares = list[float](), list[float]()
    for number in range(ROUNDS + 1):
        seconds = []
        for llm in (plain, keeping):
            began = time.perf_counter()
            chains = [c for found in llm.generate(prompts, replace(params, seed=number)) for c in found]
            seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
        verifier.score([Job("", tuple(prompts[int(chain.request)]), chain) for chain in chains])
        scoring = time.perf_counter() - began
        if number:
            ratios.append(seconds[1] / seconds[0])
            shares.append(scoring / seconds[1])
    return {
        "sampling_with_states_over_without": statistics.median(ratios),
        "scoring_share_of_sampling_seconds": statistics.median(shares),
        "chains": PROMPTS * EACH,
        "rounds": ROUNDS,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("log", type=Path)
    parser.add_argument("verifier", type=Path)
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    evaluation = json.loads((options.log / "eval.json").read_text())
    questions = {p["id"]: p["question"] for p in evaluation["problems"][: options.problems]}
    loaded = load_model(options.model)
    verifier = Verifier.load(options.verifier, loaded)
    rows = [
        row for row in read_rows(options.log / SAMPLES) if row.problem in questions and row.sample < options.samples
    ]
    scored, seconds = score_rows(rows, questions, loaded, verifier)
    chains = Chains.build(
        [row.problem for row in scored],
        [row.key for row in scored],
        [row.correct for row in scored],
        [row.seconds for row in scored],
        values={
            "score": [row.score for row in scored],
            "certainty": [row.certainty for row in scored],
            "logprob": [None if row.logprob is None else row.logprob / max(row.tokens, 1) for row in scored],
        },
    )
    ks = [k for k in (1, 2, 4, 8, 16) if k <= options.samples]
    table = {}
    for k in ks:
        plain = voter_at_k(chains, k, VOTERS["majority"])
        table[k] = {}
        for name, voter in VOTERS.items():
            values = voter_at_k(chains, k, voter)
            mean, duel = bootstrap(values), paired(values, plain)
            table[k][name] = {
                "accuracy": mean.value,
                "interval": [mean.low, mean.high],
                "over_majority": duel.value,
                "over_majority_interval": [duel.low, duel.high],
                "p_value": duel.p_value,
                "sign_test": sign_test(values, plain),
            }
    answered = [row for row in scored if row.key is not None]
    speed = evaluation["systems"][0]["tokens_per_second"]
    tokens = sum(row.tokens for row in answered)
    result = {
        "model": options.model,
        "problems": len(questions),
        "samples": options.samples,
        "chain_auc": auc(
            torch.tensor([row.score or 0.0 for row in answered]), torch.tensor([bool(row.correct) for row in answered])
        ),
        "at_k": table,
        "scoring_live": live_cost(loaded, verifier, list(questions.values())),
        "scoring_a_log": {
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "share_of_sampling_seconds": speed * seconds / tokens,
            "note": "a packed pass over each text; sampling speed as in the log's own run",
        },
        "verifier": json.loads((options.verifier / ABOUT).read_text()),
    }
    publish(result, options.out)


if __name__ == "__main__":
    main()
