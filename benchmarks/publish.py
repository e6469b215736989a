"""How every benchmark here ends: its figures with their provenance, in a file where one is named, and printed.

publish(result, options.out)
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from thinkfast.files import atomic_write
from thinkfast.provenance import provenance


def publish(result: Mapping[str, Any], out: Path | None, seed: int = 0, unprinted: Collection[str] = ()) -> None:
    """Write ``result`` and where it came from to ``out``; print it without the keys ``unprinted``."""
    whole = {**result, "provenance": provenance(seed)}
    if out is not None:
        atomic_write(out, json.dumps(whole, indent=1) + "\n")
    print(json.dumps({key: value for key, value in whole.items() if key not in unprinted}, indent=1))
