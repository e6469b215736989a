"""A model that does not fit is refused before a byte of it is read, with what it needs and what is there."""

from __future__ import annotations

import errno
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from thinkfast.errors import CapacityError
from thinkfast.models import loading, room, shapes
from thinkfast.models.room import available_memory, refusing, require_room

CPU = torch.device("cpu")
SPEC = shapes.SHAPES["llama-3.2-1b"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_may_take_all_that_is_there_and_no_byte_more(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = SPEC.n_params * dtype.itemsize
    monkeypatch.setattr(room, "available_memory", lambda device: needed)
    require_room(SPEC, dtype, CPU)
    monkeypatch.setattr(room, "available_memory", lambda device: needed - 1)
    with pytest.raises(CapacityError) as refused:
        require_room(SPEC, dtype, CPU)
    assert f"{needed / 2**20:,.1f} MiB" in refused.value.message
    assert "available on cpu" in refused.value.message
    assert ("16 bits" in refused.value.remedy) is (dtype is torch.float32)


def test_where_nobody_knows_what_is_there_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "available_memory", lambda device: None)
    require_room(replace(SPEC, d_ff=2**40), torch.float32, CPU)


def test_memory_is_told_of_a_cpu_and_of_no_meta_device() -> None:
    there = available_memory(CPU)
    assert there is not None
    assert there > 2**20
    assert available_memory(torch.device("meta")) is None


@pytest.mark.parametrize(
    ("most", "taken", "cached", "left"),
    [("8000000", "3000000", "inactive_file 500000", 5500000), ("5", "9", "active_file 7", 0), ("max", "3", "", None)],
)
def test_a_containers_limit_is_one(
    most: str, taken: str, cached: str, left: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_GROUP", tmp_path)
    for name, text in (("max", most), ("current", taken), ("stat", f"anon 1\n{cached}\n")):
        (tmp_path / f"memory.{name}").write_text(text + "\n")
    monkeypatch.setattr(room, "_in_address_space", lambda: None)
    assert room._in_container() == left
    free = available_memory(CPU)
    assert free is not None
    assert free == left if left is not None else free > 2**20  # the machine's own


LIMITED = """
import resource, sys
from thinkfast.errors import CapacityError
from thinkfast.models.loading import load_model
from thinkfast.models.room import _number
taken = _number("/proc/self/status", "VmSize:", 1024)
resource.setrlimit(resource.RLIMIT_AS, (taken + 400 * 2**20,) * 2)
try:
    load_model("random:smollm2-135m")
except CapacityError as error:
    print(error.message)
"""


def test_a_limit_on_the_process_is_one_too() -> None:
    """As `ulimit -v` sets on machines that many share: half a gigabyte of weights within 400 MiB."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert "the model does not fit in memory" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
    ],
)
def test_memory_that_runs_out_is_told_as_what_it_was_for(error: Exception) -> None:
    with (
        pytest.raises(CapacityError, match="ran out while"),
        refusing("memory ran out while it was read", "close some"),
    ):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ENOENT, "no such file"), KeyError("x")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, refusing("memory ran out", "close some"):
        raise error
    assert caught.value is error


def test_torchs_own_error_is_known() -> None:
    with pytest.raises(CapacityError), refusing("memory ran out", "close some"):
        torch.empty(2**55, dtype=torch.uint8)


@pytest.mark.parametrize("name", ["tiny", "random:smollm2-135m"])
def test_a_model_is_refused_before_its_weights_are_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(room, "available_memory", lambda device: 1000)
    monkeypatch.setattr(loading, "_read", read)
    monkeypatch.setattr(loading, "random_decoder", read)
    with pytest.raises(CapacityError, match="the model does not fit in memory"):
        loading.load_model(name)


@pytest.mark.gpu
def test_a_model_of_more_weights_than_a_card_has_room_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """340 billion weights, and nothing of them is allocated."""
    monkeypatch.setitem(
        shapes.SHAPES, "huge", replace(SPEC, d_model=32768, d_ff=131072, layer_types=("attention",) * 20)
    )
    before = torch.cuda.memory_allocated()
    with pytest.raises(CapacityError, match="available on cuda"):
        loading.load_model("random:huge", torch.bfloat16, "cuda")
    assert torch.cuda.memory_allocated() == before
