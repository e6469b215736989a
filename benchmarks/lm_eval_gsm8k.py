"""The same GSM8K problems through lm-evaluation-harness and through our own judge: texts and scores side by side.

pip install 'thinkfast[lm-eval]'
python benchmarks/lm_eval_gsm8k.py --model smollm2 --limit 12 --out results/lm-eval-gsm8k.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import lm_eval
from publish import publish

from thinkfast.data.problems import load_problems
from thinkfast.engine.llm import LLM
from thinkfast.engine.request import SamplingParams
from thinkfast.judge.answer import judge
from thinkfast.serve.lm_eval import adapter

# The answer that a text ends on, as the harness's own gsm8k task extracts it ("flexible-extract").
FLEXIBLE = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"


def task(path: Path, max_tokens: int) -> dict[str, object]:
    """GSM8K zero-shot on a local file, scored as in the harness's gsm8k task."""
    return {
        "task": "gsm8k_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["Question:"], "do_sample": False, "max_gen_toks": max_tokens},
        "filter_list": [
            {
                "name": "flexible-extract",
                "filter": [
                    {"function": "regex", "group_select": -1, "regex_pattern": FLEXIBLE},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "ignore_case": True,
                "ignore_punctuation": False,
                "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"],
            }
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--problems", default="gsm8k_test500")
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    problems = load_problems(options.problems, options.limit)
    llm = LLM(options.model, max_batch=16, max_len=800)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problems.jsonl"
        path.write_text("".join(json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in problems))
        found = lm_eval.simple_evaluate(
            model=adapter(llm), tasks=[task(path, options.max_tokens)], log_samples=True, bootstrap_iters=0
        )
    samples = sorted(found["samples"]["gsm8k_local"], key=lambda each: each["doc_id"])
    theirs = [sample["resps"][0][0] for sample in samples]
    right_theirs = [bool(sample["exact_match"]) for sample in samples]
    params = SamplingParams(temperature=0, max_tokens=options.max_tokens, stop=("Question:",))
    chains = [mine[0] for mine in llm.generate([p.question for p in problems], params)]
    verdicts = [judge(c.text, p.answer, last_number=True) for c, p in zip(chains, problems, strict=True)]
    right_ours = [verdict.correct is True for verdict in verdicts]
    result = {
        "model": options.model,
        "problems": f"the first {len(problems)} of {options.problems}, greedy, zero-shot",
        "lm_eval": lm_eval.__version__,
        "same_texts": sum(a == c.text for a, c in zip(theirs, chains, strict=True)),
        "harness_score": sum(right_theirs) / len(problems),
        "our_score": sum(right_ours) / len(problems),
        "same_verdicts": sum(a == b for a, b in zip(right_theirs, right_ours, strict=True)),
        "differ": [p.id for p, a, b in zip(problems, right_theirs, right_ours, strict=True) if a != b],
    }
    publish(result, options.out)


if __name__ == "__main__":
    main()
