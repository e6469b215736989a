"""What `thinkfast parity` and `export` show of a parity run: each row as it is there, and a verdict.

Usage: ``with ParityView(console) as view: run_parity(loaded, plan, view.check)``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from thinkfast.errors import InputError
from thinkfast.serve.parity.report import Check, ParityReport

WIDE = 150
STYLES = {"passed": "green", "broken": "bold red", "not run": "yellow"}


class ParityView:
    """A table that grows row by row; where no terminal shows it grow, a line a row on stderr besides."""

    def __init__(self, console: Console) -> None:
        self._checks: list[Check] = []
        self._live = Live(console=console, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        self._show()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()
        if self._checks:
            console = self._live.console
            console.print(check_table(self._checks, console.width), *remarks(self._checks, console.width), sep="\n")

    def check(self, check: Check) -> None:
        """A comparison is done."""
        self._checks.append(check)
        if not self._live.console.is_terminal:
            seconds = f", {check.seconds:.1f} s" if check.value is not None else ""
            line = f"parity: {check.name} with {check.against}: {check.shown}, {check.status}{seconds}"
            print(line, file=sys.stderr, flush=True)
        self._show()

    def _show(self) -> None:
        waiting = Spinner("dots", text=f"parity: {len(self._checks)} done")
        self._live.update(
            Group(check_table(self._checks, self._live.console.width), waiting) if self._checks else waiting
        )


def check_table(checks: list[Check], width: int) -> Table:
    """The rows for a terminal of ``width``; in a wide one the last column says on what was compared."""
    table = Table(title="Parity", title_justify="left", title_style="bold", box=None)
    wide = width >= WIDE
    for name in ("compared", "with", "worst", "bound", "", "on")[: 6 if wide else 5]:
        right = name in ("worst", "bound")
        table.add_column(name, header_style="dim", justify="right" if right else "left", no_wrap=name != "on")
    for check in checks:
        style = STYLES[check.status]
        bound = check.limit if check.value is not None else ""
        cells = [
            Text(check.name),
            Text(check.against),
            Text(check.shown, style=style),
            Text(bound, style="dim"),
            Text(check.status, style=style),
            Text(check.detail, style="dim"),
        ]
        table.add_row(*cells[: 6 if wide else 5])
    return table


def remarks(checks: list[Check], width: int) -> list[Text]:
    """What a narrow table leaves out of rows that did not pass: why."""
    if width >= WIDE:
        return []
    told = [check for check in checks if check.status != "passed"]
    return [
        Text.assemble((f"{check.status}: ", STYLES[check.status]), f"{check.name} with {check.against}: ", check.detail)
        for check in told
    ]


def read_report(path: Path) -> ParityReport:
    """The parity report in ``path``. Errors: InputError where there is none."""
    try:
        return ParityReport.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}", remedy="write it with thinkfast parity --out") from error
