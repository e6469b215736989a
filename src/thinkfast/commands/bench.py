"""`thinkfast bench`: tokens per second, step time and memory, beside transformers, the roofline and the teacher.

Usage: ``thinkfast bench tiny tiny-pure --batch 64 --new 256 --new 512 --out bench.json``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from thinkfast.errors import InputError, ThinkfastError

ORDER = 60
EXAMPLES = """
thinkfast bench                                    # teacher and students, against transformers; minutes
thinkfast bench --quick                            # the same for a few short runs
thinkfast bench tiny --batch 1 --batch 8 --batch 64 --new 256      # a grid
thinkfast bench random:llama-3.2-1b random:llama-3.2-1b/pure-d16 --device cuda --dtype bf16 --against none --batch 512
thinkfast bench tiny mine=runs/pure/model --against none --out bench.json
thinkfast bench --quick | tail -1 | python -m json.tool            # the last line is JSON
"""

_WORDS = {"max_batch=": "--batch ", "max_batch": "--batch", "max_len": "--prompt or --new", "--model ": ""}


def run(
    models: Annotated[
        list[str] | None, typer.Argument(help="Names or folders, or LABEL=either; default all embedded models.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Chains decoded together; may be repeated.")] = None,
    prompts: Annotated[
        list[str] | None, typer.Option(help="distinct: every chain has its own; one: all share one. Default both.")
    ] = None,
    prompt: Annotated[list[int] | None, typer.Option(help="Tokens of each random prompt; may be repeated.")] = None,
    new: Annotated[list[int] | None, typer.Option(help="Tokens each chain is forced to; may be repeated.")] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(help="SSM states on a GPU: fp32, bf16 or fp8; may be repeated."),
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Rounds, all contestants in turn; ratios are medians.")] = None,
    against: Annotated[str, typer.Option(help="Baseline at the first --new: transformers, or none.")] = "transformers",
    curve: Annotated[bool, typer.Option(help="Also measure step time against context, and break-even.")] = True,
    threads: Annotated[int | None, typer.Option(help="CPU threads for all contestants alike.")] = None,
    dtype: Annotated[
        str, typer.Option(help="fp32 or bf16, weights and caches; fp8: bf16 with the blocks' weights in eight bits.")
    ] = "fp32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Batch 16, 32 and 64 new tokens, one round.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON into this file.")] = None,
) -> None:
    """Measure models in this engine on forced-length chains, and ratios in one run.

    Tokens per second of every model; the teacher against transformers' generate on the same weights; each student
    against the teacher; the share of the roofline reached; predicted and measured break-even. JSON is the last line.
    """
    import torch
    from rich.console import Console
    from rich.text import Text

    from thinkfast.commands._benchview import print_bench
    from thinkfast.files import atomic_write, require_file_place
    from thinkfast.models.loading import PRECISIONS
    from thinkfast.report.bench import bench, present
    from thinkfast.report.benchconfig import DEFAULT_MODELS, QUICK, BenchConfig

    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}", remedy="pass --threads 1 or more")
    if dtype not in PRECISIONS:
        raise InputError(f"dtype is {dtype!r}", remedy=f"pass --dtype {' or '.join(PRECISIONS)}")
    given: dict[str, Any] = {
        "batches": batch and tuple(batch),
        "prompts": prompts and tuple(prompts),
        "prompt_tokens": prompt and tuple(prompt),
        "states": state and tuple(state),
        "new_tokens": new and tuple(new),
        "repeats": repeats,
    }
    names, notes = (tuple(models), []) if models else present(DEFAULT_MODELS)
    config = replace(
        QUICK if quick else BenchConfig(),
        models=names,
        against=cast(Any, against),
        curve=curve,
        dtype=cast(Any, dtype),
        device=device,
        seed=seed,
        **{name: value for name, value in given.items() if value is not None},
    )
    before = torch.get_num_threads()
    try:
        config.validate()
        if out is not None:
            require_file_place(out)
        torch.set_num_threads(threads or before)
        beside = Console(stderr=True, highlight=False)

        def show(name: str, plan: object) -> None:
            beside.print(Text(f"{name}: {plan}", style="dim"))

        with beside.status("") as status:
            found = bench(config, say=status.update, notes=notes, on_plan=show)
    except ThinkfastError as error:
        raise _in_own_words(error) from error
    finally:
        torch.set_num_threads(before)
    line = json.dumps(found)
    if out is not None:
        atomic_write(out, line + "\n")
    print_bench(found, Console(highlight=False, soft_wrap=True))
    print(line)


def _in_own_words(error: ThinkfastError) -> ThinkfastError:
    """The error with a remedy that can be typed here: the engine speaks of its arguments, others have a --model."""
    remedy = error.remedy
    for theirs, ours in _WORDS.items():
        remedy = remedy.replace(theirs, ours)
    return type(error)(error.message, remedy=remedy)
