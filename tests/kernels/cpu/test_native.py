from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest
import torch

from thinkfast.kernels.cpu import native
from thinkfast.kernels.cpu.native import pack, pack_gated, trim


@pytest.mark.parametrize(("outputs", "columns"), [(32, 16), (33, 16), (5, 32)])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("piece", [1 << 22, 7 * 16, 1])
def test_panels_hold_the_matrix(
    outputs: int, columns: int, exact: bool, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_PIECE", piece)
    weight = torch.randn(outputs, 7)
    if exact:
        weight = weight.to(torch.bfloat16).float()
    packed = pack(weight, torch.arange(outputs).float(), columns)
    assert packed.panels.dtype == (torch.bfloat16 if exact else torch.float32)
    unpacked = packed.panels.transpose(1, 2).reshape(-1, 7).float()
    assert torch.equal(unpacked[:outputs], weight)
    assert not unpacked[outputs:].any()
    assert packed.bias is not None
    assert packed.bias.shape[0] == unpacked.shape[0]
    assert torch.equal(packed.bias[:outputs], torch.arange(outputs).float())


@pytest.mark.parametrize("width", [16, 11])
def test_gate_and_up_lie_side_by_side(width: int) -> None:
    both = torch.randn(2 * width, 3)
    panels = pack_gated(both, 8).panels.transpose(1, 2)  # [panels, 8, 3]
    gate, up = panels[:, :4].reshape(-1, 3)[:width], panels[:, 4:].reshape(-1, 3)[:width]
    assert torch.equal(gate, both[:width])
    assert torch.equal(up, both[width:])


def test_a_library_that_cannot_trim_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=asked.append))
    trim()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    trim()
    assert asked == [0]
