"""The tests that a GPU decides, run on one; writes results/gpu-tests.json, so that what passed names its code.

    PYTHONPATH=src python3 benchmarks/gpu_tests.py --out results/gpu-tests.json [--workers 7]

Kernels against their references, the captured runner, compute-sanitizer, measured products, the refusal of a model that
is too large. About three minutes on an H100 with seven workers. Exits as pytest does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import torch

from thinkfast.files import atomic_write
from thinkfast.provenance import provenance

ROOT = Path(__file__).parents[1]
PLACES = (
    "tests/kernels/cuda",
    "tests/kernels/triton",
    "tests/kernels/test_cublaslt.py",
    "tests/engine/cuda",
    "tests/models/test_room.py",
    "tests/report/test_bench.py::test_curves_on_a_gpu_need_no_page_more_than_planned",
)
# The project's own settings ask for plugins that a GPU's machine may not have; test_compiled.py needs no GPU.
PYTEST = (
    *(sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", str(ROOT), "--import-mode=importlib"),
    *("-o", "markers=gpu: needs a GPU", "-o", "filterwarnings=ignore"),
    *("--deselect", "tests/engine/cuda/test_compiled.py"),
)


def outcome(case: ElementTree.Element) -> str:
    """How a test ended, by pytest's report."""
    kinds = {"failure": "failed", "error": "failed", "skipped": "skipped"}
    return next((kinds[child.tag] for child in case if child.tag in kinds), "passed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=0, help="processes at once (pytest-xdist); 0 for one")
    parser.add_argument("places", nargs="*", default=PLACES)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch finds no GPU here; without one these tests run interpreted, as part of `make test`")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        several = ("-n", str(given.workers)) if given.workers else ()
        command = [*PYTEST, *several, "--junitxml", str(report), *given.places]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if not report.exists():
            sys.exit(code or 1)
        cases = list(ElementTree.parse(report).iter("testcase"))
    by_file: dict[str, Counter[str]] = {}
    for case in cases:
        by_file.setdefault(case.get("classname", ""), Counter())[outcome(case)] += 1
    found = {
        **provenance(0),
        "places": list(given.places),
        "exit_code": code,
        "seconds": time.monotonic() - began,
        **{kind: sum(counts[kind] for counts in by_file.values()) for kind in ("passed", "failed", "skipped")},
        "files": {name: dict(counts) for name, counts in sorted(by_file.items())},
        "failures": [f"{one.get('classname')}::{one.get('name')}" for one in cases if outcome(one) == "failed"],
    }
    atomic_write(given.out, json.dumps(found, indent=1) + "\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
