"""Compiles every kernel of a prefill and a step for a Hopper on a machine that has none, and tells what each needs.

Run by test_compiled.py in a process of its own: Triton's driver is one that launches nothing, so tensors stay on the
CPU and hold whatever they hold.

    python hopper.py hybrid:16:256:bf16 pure:64:8:fp8:fp8   # d_state, rows, dtype of states and of weights; prints JSON
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from driving import drive
from toy_models import random_model

from thinkfast.models.fp8 import in_fp8
from thinkfast.models.spec import ModelSpec

# An H100's, as far as kernels ask.
SHARED, MULTIPROCESSORS = 232448, 132
# Heads, head dim and feed-forward width are Llama-3.2-1B's: they decide how kernels are cut.
TEACHER = ModelSpec(512, 256, 32, 8, 64, 8192, ("attention",) * 2, tie_embeddings=False, max_positions=1024)
# Prompts whose 32 heads are eight for each multiprocessor, enough to be walked as many (kernels/triton/ssd.py).
MANY = 33
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")
found: list[dict[str, Any]] = []


class Utils:
    """What the compiler asks of a driver."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED, "multiprocessor_count": MULTIPROCESSORS}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(binary)
            file.flush()
            command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
            told = subprocess.run(command, capture_output=True, text=True, check=True)
        ((registers, stack),) = RESOURCES.findall(told.stdout)
        found.append({"name": name, "registers": int(registers), "stack": int(stack), "shared": shared})
        return 0, 0, int(registers), 0, 1024


class Nowhere:
    """A driver of a Hopper that is not there."""

    utils = Utils()

    def launcher_cls(self, *_: Any) -> Any:
        return lambda *_, **__: None

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_case(kind: str, d_state: str, rows: str, state: str, weights: str = "bf16") -> None:
    """A prefill of many prompts where there is room for them, one of one, one in pieces, a fork and a step."""
    students = {
        "teacher": TEACHER,
        "hybrid": TEACHER.as_student((0,), int(d_state)),
        "pure": TEACHER.as_student((), int(d_state)),
    }
    model = random_model(students[kind]).to(torch.bfloat16)
    drive(in_fp8(model) if weights == "fp8" else model, int(rows), DTYPES[state], [[5, 9, 11]] * MANY, steps=1)


def main() -> None:
    driver.set_active(Nowhere())
    # torch, too, is asked what chip this is.
    torch.cuda.get_device_capability = lambda device=None: (9, 0)  # type: ignore[assignment]
    chip = SimpleNamespace(multi_processor_count=MULTIPROCESSORS)
    torch.cuda.get_device_properties = lambda device=None: chip  # type: ignore[assignment]
    for case in sys.argv[1:]:
        known = len(found)
        compile_case(*case.split(":"))
        for kernel in found[known:]:
            kernel["case"] = case
    print(json.dumps(found))


if __name__ == "__main__":
    main()
