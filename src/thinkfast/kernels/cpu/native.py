"""decode.c's structs, the packing of matrices into panels, and the two calls.

torch's own thread count is used and torch's OpenMP runtime, so that no second set of threads spins beside it.

Legend: B rows, V vocabulary, O outputs and I inputs of a matrix, N columns of a panel.

Usage: ``library = load_library(sizes)``, then ``packed = pack(weight, bias, library.columns())``.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_PIECE = 1 << 22  # numbers of a matrix that are packed at once


def _layout(pointers: str = "", ints: str = "", floats: str = "") -> list[tuple[str, type]]:
    kinds = ((pointers, ctypes.c_void_p), (ints, ctypes.c_int64), (floats, ctypes.c_float))
    return [(name, kind) for names, kind in kinds for name in names.split()]


class CMatrix(ctypes.Structure):
    """``matrix`` of decode.c."""

    _fields_ = _layout("data bias", "inputs outputs bf16")


class CLayer(ctypes.Structure):
    """``layer`` of decode.c."""

    _fields_ = [
        ("mamba", ctypes.c_int64),
        *_layout("input_norm post_norm"),
        *((name, CMatrix) for name in ("into", "out", "up", "down")),
        *_layout("q_norm k_norm tail_k tail_v page_k page_v"),
        *_layout("taps conv_bias dt_bias rates skip gate_norm conv state"),
    ]


class CStep(ctypes.Structure):
    """``step_args`` of decode.c."""

    _fields_ = [
        ("layers", ctypes.POINTER(CLayer)),
        *_layout("embed norm"),
        ("head", CMatrix),
        *_layout("cos sin x normed wide mid logits tokens positions tail_len pages filled spans"),
        *_layout(
            ints="n_layers rows d heads kv_heads mixer_heads max_spans ld_x ld_wide ld_mid ld_logits threads",
            floats="scale eps",
        ),
    ]


class CDraw(ctypes.Structure):
    """``draw_args`` of decode.c."""

    _fields_ = _layout(
        "logits inverse_temperature uniform greedy tokens logprobs finite certainty", "rows stride vocabulary threads"
    )


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix as panels [ceil(O / N), I, N] in bf16 or fp32, zeros behind the last column; bias fp32 or None."""

    panels: Tensor
    bias: Tensor | None
    outputs: int

    def as_c(self) -> CMatrix:
        """The struct; this object has to outlive it."""
        bias = None if self.bias is None else self.bias.data_ptr()
        bf16 = self.panels.dtype == torch.bfloat16
        return CMatrix(self.panels.data_ptr(), bias, self.panels.shape[1], self.outputs, bf16)


def pack(weight: Tensor, bias: Tensor | None, columns: int) -> Packed:
    """weight [O, I] fp32 and bias [O] to panels of ``columns``; in bf16 where every value is one of bf16's, as those of
    most published checkpoints are: it halves what a step reads and changes nothing.
    """
    outputs, inputs = weight.shape
    rest = -outputs % columns
    # Piece by piece: a copy of a whole vocabulary beside its panels would be what a plan has no room for.
    pieces = torch.split(weight, columns * max(1, _PIECE // (columns * inputs)))
    exact = all(bool((piece.to(torch.bfloat16).to(piece.dtype) == piece).all()) for piece in pieces)
    panels = torch.empty((outputs + rest) // columns, inputs, columns, dtype=torch.bfloat16 if exact else torch.float32)
    at = 0
    for piece in pieces:
        padded = F.pad(piece, (0, 0, 0, -len(piece) % columns)).view(-1, columns, inputs)
        panels[at : at + len(padded)] = padded.transpose(1, 2)
        at += len(padded)
    if bias is not None:
        bias = torch.cat((bias.detach(), bias.new_zeros(rest)))
    return Packed(panels, bias, outputs)


def trim() -> None:
    """Give back to the system what packing has freed: glibc keeps it, a tenth of what was packed. Others do not."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def pack_gated(both: Tensor, columns: int) -> Packed:
    """Gate and up [2 F, I] to panels that hold ``columns / 2`` of each side by side; outputs are 2 F, padded."""
    half, inputs = columns // 2, both.shape[1]
    gate, up = both.chunk(2)
    rest = -gate.shape[0] % half
    if rest:
        gate, up = (torch.cat((x, x.new_zeros(rest, inputs))) for x in (gate, up))
    paired = torch.stack((gate.view(-1, half, inputs), up.view(-1, half, inputs)), 1)
    return pack(paired.reshape(-1, inputs), None, columns)
