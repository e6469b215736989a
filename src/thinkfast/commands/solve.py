"""`thinkfast solve`: one problem, many chains, one answer by a deadline, shown live.

Usage: ``thinkfast solve "Tom has 3 apples …" --model tiny --seconds 5``.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinkfast.judge.events import Event
    from thinkfast.judge.solution import Solution

ORDER = 30
EXAMPLES = """
thinkfast solve "Tom has 47 cards and finds 42 more. How many has he now?"     # 5 seconds, up to 64 chains
thinkfast solve "…" --model tiny-hybrid --seconds 1                            # a faster model, less time
thinkfast solve "…" -m runs/pure/model -n 256 --seconds 30                     # a folder, more chains
thinkfast solve "…" -m qwen1.5b -n 512 --device cuda                           # on a GPU, in bf16
thinkfast solve "…" --stop posterior:0.95                                      # stop when as good as decided
thinkfast solve "…" --voter certainty                                          # sure chains weigh more
thinkfast solve "…" --temperature 0                                            # one greedy chain
thinkfast solve - < problem.txt | tail -n 1                                    # the answer alone
thinkfast solve "…" --json | jq .share                                         # for programs
"""


def run(
    problem: Annotated[str, typer.Argument(help="The question in words; - reads it from standard input.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Name or folder; see `thinkfast models`.")] = "tiny",
    seconds: Annotated[float, typer.Option("--seconds", "-s", help="Budget with loading the model; see above.")] = 5.0,
    n: Annotated[int, typer.Option("-n", help="Most chains.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy, and one chain.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Longest chain.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    voter: Annotated[
        str | None, typer.Option(help="majority, weighted, best, certainty or likelihood; see docs/voters.md.")
    ] = None,
    stop: Annotated[
        str, typer.Option(help="When a vote is decided: unbeatable, posterior:0.95, window:4 or never.")
    ] = "unbeatable",
    verifier: Annotated[
        Path | None, typer.Option(help="Folder of a verifier for this model, or of a reward model.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Let a checker join answers that only algebra can tell are the same.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(help="fp32, bf16, or fp8: bf16 with weights in eight bits. Default fp32, bf16 on a GPU."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Sample chains of thought, let them vote, and answer before the seconds are over.

    Stops early when the chains still to come could not change the vote. The last line is the answer, or "no answer"
    where no chain got to one in time.

    What Python takes to start and import torch, two to four seconds, comes before and is not counted.
    """
    if problem == "-":
        problem = sys.stdin.read()

    from rich.console import Console

    from thinkfast.commands._scorers import with_scorer
    from thinkfast.commands._solveview import solve_view
    from thinkfast.judge.deciding import find_rule
    from thinkfast.judge.solve import Options, require_seconds, solve

    require_seconds(seconds)
    rule = find_rule(stop)
    options: Options = {"n": n, "temperature": temperature, "seed": seed, "max_tokens": max_tokens, "stop_rule": rule}
    options["voter"] = voter or ("weighted" if verifier is not None else "majority")

    def ask(on_event: Callable[[Event], None] | None) -> Solution:
        with ExitStack() as stack:
            if check:
                from thinkfast.judge.checker import Checker

                options["checker"] = stack.enter_context(Checker())
            if verifier is None:
                options["device"] = device
                if dtype is not None:
                    options["dtype"] = dtype
                return solve(problem, seconds=seconds, model=model, on_event=on_event, **options)
            began = time.monotonic()
            llm, options["scorer"] = with_scorer(model, verifier, problem, n, max_tokens, device, dtype)
            left = max(seconds - (time.monotonic() - began), 1e-9)
            return solve(problem, seconds=left, model=llm, on_event=on_event, **options)

    if json_output:
        print(json.dumps(ask(None).to_dict(), ensure_ascii=False))
        return
    with solve_view(Console(highlight=False), problem, seconds, n) as view:
        view.finish(ask(view.event))
