"""A model that does not fit is refused before a byte of it is read, with what it needs and what is there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from thinkfast.errors import CapacityError
from thinkfast.models import loading, room, shapes
from thinkfast.models.room import available_memory, require_room

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
    assert there is None or there > 2**20
    assert available_memory(torch.device("meta")) is None


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
