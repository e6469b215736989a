"""`thinkfast parity`: the same model in every form and program must say the same; by how much it does.

Usage: ``thinkfast parity tiny-hybrid --out results``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ORDER = 85
EXIT_BROKEN = 1
EXAMPLES = """
thinkfast parity tiny --quick                                            # a look, in seconds
thinkfast parity tiny-hybrid --out results                               # all, into results/parity-tiny-hybrid.json
thinkfast parity smollm2 --problems gsm8k_test500 --json smollm2.json    # on prompts of GSM8K
thinkfast parity smollm2 --prompts 6 --steps 200                         # of a large model on a CPU, less
thinkfast parity out/hybrid --vllm-python ~/vllm/bin/python --llama-python ~/llama/bin/python
thinkfast parity out/hybrid --require transformers                       # a comparison that cannot run fails, too
"""


def run(
    model: Annotated[str, typer.Argument(help="Name or folder of the model.")],
    quick: Annotated[bool, typer.Option("--quick", help="Few prompts, few steps.")] = False,
    problems: Annotated[str, typer.Option(help="Where the prompts come from.")] = "tiny_test",
    prompts: Annotated[
        int | None, typer.Option(min=1, help="How many of them; default: 20, quick 8.", show_default=False)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the bf16 drift; default: 2,000, quick 100.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for parity-MODEL.json.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the report.")] = None,
    vllm_python: Annotated[Path | None, typer.Option(help="A Python that has vLLM.")] = None,
    llama_python: Annotated[Path | None, typer.Option(help="A Python that has llama-cpp-python.")] = None,
    require: Annotated[
        list[str] | None, typer.Option(help="Fail where this cannot be compared: transformers, vllm, llama.cpp.")
    ] = None,
) -> None:
    """Compare ours with ourselves and with transformers, vLLM and llama.cpp; exit with 1 where a bound is broken.

    Forms of ours: prefill and step, alone and in a batch, forked and independent, fp32 and bf16. What is not
    installed is left out, with the reason.
    """
    import json
    from dataclasses import replace

    from rich.console import Console
    from rich.text import Text

    from thinkfast.commands._parityview import ParityView
    from thinkfast.files import atomic_write, output_errors, require_file_place
    from thinkfast.models.loading import find_model, load_model
    from thinkfast.serve.parity.run import Plan, missing, run_parity

    console = Console(highlight=False, soft_wrap=False)
    plan = Plan.of(quick, problems, vllm_python, llama_python)
    plan = replace(plan, prompts=prompts or plan.prompts, steps=steps or plan.steps)
    wanted = tuple(require or ())
    missing((), wanted)  # refuses an unknown name before the work
    find_model(model)  # others need its folder and tokenizer, which a random: one does not have
    paths = [json_file] if json_file is not None else []
    if out is not None:
        with output_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        paths.append(out / f"parity-{Path(model).name}.json")
    for path in paths:
        require_file_place(path)
    loaded = load_model(model)
    with ParityView(console) as view:
        report = run_parity(loaded, plan, view.check)
    for path in paths:
        atomic_write(path, json.dumps(report.as_json(), indent=1) + "\n")
        console.print(Text(f"wrote {path}"))
    broken = [f"{check.name} against {check.against}" for check in report.checks if check.status == "broken"]
    lost = missing(report.checks, wanted)
    for line in (*(f"broken: {name}" for name in broken), *(f"required, but not run: {name}" for name in lost)):
        console.print(Text(line, style="bold red"))
    if broken or lost:
        raise typer.Exit(EXIT_BROKEN)
    ran = sum(check.value is not None for check in report.checks)
    console.print(Text(f"parity holds: {ran} of {len(report.checks)} comparisons ran, no bound broken", style="green"))
