"""`thinkfast eval`: models x problems x samples into a sample log, with a live view, a table and a report.

Usage: ``thinkfast eval --model tiny --model tiny-hybrid --problems tiny_test --limit 20 -n 8 --out runs/eval``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from thinkfast.errors import InputError

ORDER = 40
RESUMES = "the last unit that it has kept, a sample or more of every problem"
EXAMPLES = """
thinkfast eval -m tiny -m tiny-hybrid --limit 20 -n 8             # 8 samples of 20 problems by each
thinkfast eval -m tiny -m tiny-pure --limit 50 --seconds 60       # as many as 60 s allow each
thinkfast eval -m tiny -m mine=runs/pure/model --out runs/mine    # a model under a label
thinkfast eval recipes/eval.yaml n=16 temperature=0.8             # a recipe, with changes
thinkfast eval -m tiny --problems data/mine.jsonl -n 4            # your own problems
"""


def run(
    recipe: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="A YAML file, and changes to it.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Name or folder, or LABEL=either; may be repeated.")
    ] = None,
    problems: Annotated[str | None, typer.Option(help="Problem set: tiny_test, gsm8k_test500, a .jsonl file.")] = None,
    limit: Annotated[int | None, typer.Option(help="The first so many problems.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="How to ask: auto (by the chat template), plain, boxed, llama, completion.")
    ] = None,
    n: Annotated[int | None, typer.Option("-n", help="Samples per problem (8, or no limit with --seconds).")] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds for each model and the whole set.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest chain.")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Most chains decoded together.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for log and report; an interrupted run there goes on.")] = Path(
        "runs/eval"
    ),
    report: Annotated[bool, typer.Option(help="Draw report.html when done.")] = True,
) -> None:
    """Sample every model on the same problems, check the answers, and draw accuracy against measured seconds.

    Interrupted or killed, the same command goes on after the last unit that it kept: up to 4 samples of every problem.
    A smaller one (unit=1) loses less, a larger one fills batches better.
    """
    paths = [text for text in recipe or [] if "=" not in text]
    changes = [text for text in recipe or [] if "=" in text]
    if len(paths) > 1:
        raise InputError(f"two recipes: {paths[0]} and {paths[1]}", remedy="name one, and changes as key=value")
    if not paths and not model and not any(change.startswith("models") for change in changes):
        raise InputError("no model to evaluate", remedy="name one, as in: thinkfast eval --model tiny --limit 20 -n 8")
    if seconds is not None and not math.isfinite(seconds):
        raise InputError(f"seconds is {seconds}, a budget must be a positive number", remedy="pass --seconds 60")

    from thinkfast.commands._evalview import EvalView, print_result
    from thinkfast.config import load_config, read_yaml
    from thinkfast.report.evaluate import EvalConfig, evaluate
    from thinkfast.report.render import render_report
    from thinkfast.report.results import load_results

    given = {
        "problems": problems,
        "limit": limit,
        "prompt": prompt,
        "n": n,
        "seconds": seconds,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "max_batch": max_batch,
    }
    if seconds is not None and n is None and not (paths and "n" in read_yaml(paths[0])):
        changes = ["n=null", *changes]
    changes += [f"{key}={value}" for key, value in given.items() if value is not None]
    if model:
        changes.append(f"models={json.dumps(model)}")  # JSON is YAML
    config = load_config(EvalConfig, paths[0] if paths else None, changes)
    with EvalView(config) as view:
        evaluate(config, out, on_load=view.load, on_plan=view.plan, on_start=view.start, on_chain=view.chain)
    results = load_results(out)
    print_result(results, out, render_report(results, out) if report else None)
