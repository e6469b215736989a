"""`thinkfast export`: a student as what other programs run: a stock checkpoint folder, or a GGUF file.

Usage: ``thinkfast export runs/hybrid/model --to hf out/hybrid --eval runs/eval``.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from thinkfast.errors import InputError

ORDER = 80
EXAMPLES = """
thinkfast export runs/hybrid/model --to hf out/hybrid                  # for transformers and vLLM, with a card
thinkfast export runs/hybrid/model --to hf out/hybrid --eval runs/eval # the card carries the evaluation too
thinkfast export tiny-pure --to hf out/pure --parity results/parity-tiny-pure.json
thinkfast export tiny-hybrid --to gguf hybrid.gguf --dtype bf16        # for llama.cpp
"""


class Format(StrEnum):
    """What to write."""

    HF = "hf"
    GGUF = "gguf"


class Dtype(StrEnum):
    """Of the weights."""

    FP32 = "fp32"
    BF16 = "bf16"


def run(
    model: Annotated[str, typer.Argument(help="Name or folder of the model.")],
    out: Annotated[Path, typer.Argument(help="Folder (hf) or file (gguf) to write.")],
    to: Annotated[Format, typer.Option(help="hf: a checkpoint folder; gguf: one file for llama.cpp.")] = Format.HF,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights; default: as the model is stored.")] = None,
    parity: Annotated[
        Path | None, typer.Option(help="A parity report for the card; default: a quick run on the export.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-parity", help="Measure parity where no report is given.")
    ] = True,
    evaluation: Annotated[
        Path | None, typer.Option("--eval", help="Folder of an evaluation of this model, for the card.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Write a model as a stock checkpoint with tokenizer and card, or as GGUF: nobody needs code of ours to run it."""
    if to is Format.GGUF and (parity is not None or evaluation is not None):
        raise InputError("a GGUF file carries no card", remedy="leave out --parity and --eval, or use --to hf")

    from rich.console import Console

    from thinkfast.models.loading import load_model

    console = Console(highlight=False, soft_wrap=True, markup=False)
    if to is Format.GGUF:
        from thinkfast.serve.export import DTYPES, claim_file, source_dtype
        from thinkfast.serve.gguf_model import write_gguf

        claim_file(out, overwrite)
        loaded = load_model(model)
        kind = dtype or source_dtype(loaded.path)
        size = write_gguf(loaded, out, DTYPES[kind])
        console.print(f"wrote {out}, {size / 2**20:,.1f} MiB in {kind}\ntry: llama-cli -m {out}")
        return

    from thinkfast.commands._parityview import ParityView, read_report
    from thinkfast.serve.card import read_evaluation
    from thinkfast.serve.export import claim_folder, export_hf
    from thinkfast.serve.parity.run import Plan, run_parity

    claim_folder(out, overwrite)
    report = read_report(parity) if parity is not None else None
    judged = read_evaluation(evaluation) if evaluation is not None else None
    loaded = load_model(model)
    if report is not None or not measure:
        export_hf(loaded, out, dtype, report, judged, overwrite)
    else:
        with ParityView(console) as view:
            plan = Plan.of(quick=True, problems="tiny_test")
            export_hf(loaded, out, dtype, lambda made: run_parity(made, plan, view.check), judged, overwrite)
    console.print(f"wrote {out}, its card is {out / 'README.md'}")
