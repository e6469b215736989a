"""Find what a report is drawn from in a run's folder.

A demo leaves `results.json` (see `report.render.RESULTS`), an evaluation `eval.json`; either will do.

Usage: ``render_report(load_results(Path("runs/eval")), Path("runs/eval"))``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from thinkfast.errors import InputError
from thinkfast.report.evaluate import EVAL, read_eval

RESULTS_NAME = "results.json"


def load_results(folder: Path) -> dict[str, Any]:
    """The results in `folder`. Errors: InputError where there are none, or they are no JSON object."""
    for name in (RESULTS_NAME, EVAL):
        path = folder / name
        if path.is_file():
            return _read(path) if name == RESULTS_NAME else {"version": 1, "eval": read_eval(path)}
    what = "holds no finished run" if folder.is_dir() else "does not exist"
    raise InputError(
        f"{folder} {what}: neither {RESULTS_NAME} nor {EVAL} is there",
        remedy="name the folder of thinkfast demo or eval; run that command again if it was interrupted",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}", remedy="run the command that wrote it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object", remedy="run the command that wrote it again")
    return found
