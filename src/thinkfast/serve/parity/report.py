"""What a parity run found: one Check a row, a ParityReport of all, as JSON and back.

Why a value object: the terminal, the results file and the model card show the same rows, and an export must be able
to carry the report of a run that was made elsewhere.

Usage: ``report = ParityReport.from_json(json.loads(text)); report.ok``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from thinkfast.errors import InputError

VERSION = 1
Curve = tuple[tuple[int, float, float], ...]


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison. value: the worst difference found, None where the check could not run, and then ``detail`` says
    why and what to do. bound: the most that value may be; the row passes when it is within, and a NaN never is.
    """

    name: str
    against: str
    value: float | None
    bound: float
    unit: str
    detail: str
    seconds: float = 0.0

    @property
    def status(self) -> str:
        """One of "passed", "broken" and "not run"."""
        if self.value is None:
            return "not run"
        return "passed" if self.value <= self.bound else "broken"

    @property
    def shown(self) -> str:
        """The value as a table shows it."""
        if self.value is None:
            return "–"
        return (
            f"{self.value:.0f} {self.unit}" if self.unit not in ("", "nats", "x") else f"{self.value:.2g} {self.unit}"
        )

    @property
    def limit(self) -> str:
        """The bound as a table shows it."""
        return f"≤ {self.bound:.0e}" if 0 < self.bound < 0.01 else f"≤ {self.bound:g}"


@dataclass(frozen=True, slots=True)
class ParityReport:
    """All checks of one model. sha: digest of its weights. notes: what the drift looked like step by step, and such."""

    model: str
    sha: str
    family: str
    parameters: int
    quick: bool
    problems: str
    checks: tuple[Check, ...]
    curve: Curve
    provenance: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether no bound is broken."""
        return not any(check.status == "broken" for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Plain data with each check's status written out."""
        rows = [{**asdict(check), "status": check.status} for check in self.checks]
        return {
            "version": VERSION,
            "ok": self.ok,
            **asdict(self),
            "checks": rows,
            "curve": [list(p) for p in self.curve],
        }

    @classmethod
    def from_json(cls, data: Any) -> ParityReport:
        """The report that ``as_json`` wrote. Errors: InputError where ``data`` is something else."""
        try:
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']}")
            names = [field.name for field in fields(Check)]
            checks = tuple(Check(**{name: row[name] for name in names}) for row in data["checks"])
            rest = {field.name: data[field.name] for field in fields(cls)}
            curve = tuple((int(step), float(a), float(b)) for step, a, b in data["curve"])
            return cls(**(rest | {"checks": checks, "curve": curve}))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"this is no parity report: {error!r}", remedy="write one with thinkfast parity"
            ) from error
