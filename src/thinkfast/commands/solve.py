"""`thinkfast solve`: one problem, many chains, one answer by a deadline, shown live.

Usage: ``thinkfast solve "Tom has 3 apples …" --model tiny --seconds 5``.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from thinkfast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinkfast.judge.events import Event
    from thinkfast.judge.solution import Solution

ORDER = 30
EXAMPLES = """
thinkfast solve "Tom has 47 cards and finds 42 more. How many has he now?"     # 5 seconds, up to 64 chains
thinkfast solve "…" --model tiny-hybrid --seconds 1                            # a faster model, less time
thinkfast solve "…" -m runs/pure/model -n 256 --seconds 30                     # a folder, more chains
thinkfast solve "…" --temperature 0                                            # one greedy chain
thinkfast solve - < problem.txt | tail -n 1                                    # the answer alone
thinkfast solve "…" --json | jq .share                                         # for programs
"""


def run(
    problem: Annotated[str, typer.Argument(help="The question in words; - reads it from standard input.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Name or folder; see `thinkfast models`.")] = "tiny",
    seconds: Annotated[float, typer.Option("--seconds", "-s", help="Budget, loading the model included.")] = 5.0,
    n: Annotated[int, typer.Option("-n", help="Most chains.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy, and one chain.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Longest chain.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Sample chains of thought, let them vote, and answer before the seconds are over.

    Stops early when the chains still to come could not change the vote. The last line is the answer, or "no answer"
    where no chain got to one in time.
    """
    if problem == "-":
        try:
            problem = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise InputError(f"standard input is no text: {error}", remedy="give it as UTF-8") from error

    from rich.console import Console

    from thinkfast.commands._solveview import solve_view
    from thinkfast.judge.solve import solve

    def ask(on_event: Callable[[Event], None] | None) -> Solution:
        return solve(
            problem,
            seconds=seconds,
            model=model,
            n=n,
            temperature=temperature,
            seed=seed,
            max_tokens=max_tokens,
            on_event=on_event,
        )

    if json_output:
        print(json.dumps(ask(None).to_dict(), ensure_ascii=False))
        return
    with solve_view(Console(highlight=False), problem, seconds, n) as view:
        view.finish(ask(view.event))
