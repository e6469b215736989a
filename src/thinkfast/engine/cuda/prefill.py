"""Packed prefill of ragged prompts on a GPU: Decoder.prefill with the decode step's kernels in it.

Legend: T tokens, n prompts, D model width, F feed-forward width.

Usage: ``hidden = Prefill(model, mixers, state)(tokens, ragged, slots, places)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

from thinkfast.engine.cuda.state import Places, State
from thinkfast.kernels.triton.gated import gated, serves
from thinkfast.kernels.triton.mixer import MixerLayer
from thinkfast.kernels.triton.norm import add_norm
from thinkfast.kernels.triton.rounding import round_rows
from thinkfast.kernels.triton.ssd import Prompts, ssd_prefill
from thinkfast.kernels.triton.swiglu import swiglu
from thinkfast.models.attention import Attention, Rope
from thinkfast.models.decoder import MLP, Block, Decoder
from thinkfast.models.fp8 import FP8, Fp8Linear, is_fp8
from thinkfast.models.mixers import Mamba
from thinkfast.models.ragged import Ragged


@dataclass(frozen=True, slots=True)
class _Rows:
    """What goes into a product: x [T, K], in eight bits where there is a ``scale`` [T, 1]."""

    x: Tensor
    scale: Tensor | None

    @classmethod
    def empty(cls, like: Tensor, width: int, fp8: bool) -> _Rows:
        """Room for as many rows as ``like`` has."""
        x = like.new_empty(like.shape[0], width, dtype=FP8 if fp8 else like.dtype)
        return cls(x, like.new_empty(like.shape[0], 1, dtype=torch.float32) if fp8 else None)

    @classmethod
    def of(cls, x: Tensor, fp8: bool) -> _Rows:
        """``x`` itself, or rounded."""
        if not fp8:
            return cls(x, None)
        rows = cls.empty(x, x.shape[1], True)
        if rows.scale is not None:
            round_rows(x, rows.x, rows.scale)
        return rows

    def times(self, linear: nn.Linear | Fp8Linear, dtype: torch.dtype) -> Tensor:
        """Their product with a layer's weight [N, K], [T, N]."""
        if isinstance(linear, Fp8Linear) and self.scale is not None:
            return linear.of_rounded(self.x, self.scale, dtype)
        y: Tensor = linear(self.x)
        return y


class Prefill:
    """``model``'s prefill into ``state``; ``mixers`` are its Mamba layers' prepared weights, in order."""

    def __init__(self, model: Decoder, mixers: Sequence[MixerLayer], state: State) -> None:
        self.model, self._state = model, state
        self._mixers = tuple(zip(mixers, state.mixers, strict=True))
        self._fp8 = is_fp8(model)
        # What follows each layer's feed-forward: the next one's norm, and the next one.
        norms = [block.input_norm.weight for block in model.blocks[1:]] + [model.norm.weight]
        self._following: list[tuple[Tensor, Block | None]] = list(zip(norms, [*model.blocks[1:], None], strict=True))

    def __call__(self, tokens: Tensor, ragged: Ragged, slots: Tensor, places: Places) -> Tensor:
        """tokens [T] of n prompts, or of one that goes on, to the hidden state of each one's last token [n, D]. What
        Mamba layers leave behind is then in the slots [n], keys and values of attention in their ``places``.
        """
        # Norms, residuals and gates by the decode step's kernels: torch's take a fifth of a prefill.
        model, fp8 = self.model, self._fp8
        positions = ragged.positions + places.before if places.before else ragged.positions
        rope, eps = model.rope(positions), model.spec.norm_eps
        prompts: Prompts | None = None
        residual = model.embed(tokens)
        dtype = residual.dtype

        def added(update: Tensor, weight: Tensor, rounded: bool) -> _Rows:
            rows = _Rows.empty(residual, residual.shape[1], rounded)
            add_norm(residual, update, weight, rows.x, eps, rows.scale)
            return rows

        normed = _Rows.of(model.blocks[0].input_norm(residual), self._rounds(model.blocks[0]))
        mixers, layers = iter(self._mixers), count()
        for block, (norm, following) in zip(model.blocks, self._following, strict=True):
            if isinstance(block.mixer, Mamba):
                layer, into = next(mixers)
                prompts = prompts or Prompts.of(
                    ragged.starts, ragged.lens, ragged.sequence, positions, slots, block.mixer.d_conv, places.before
                )
                given = ssd_prefill(normed.times(block.mixer.in_proj, dtype), layer, prompts, into)
            else:
                given = self._attend(block.mixer, next(layers), normed.x, ragged, rope, places)
            if following is None:
                # Of the last layer only a prompt's last token is asked for.
                given, residual = given[ragged.last], residual[ragged.last]
            rows = _Rows.of(given, self._rounds(block))
            del given
            # Nothing has a name that is read once: what comes next needs the room.
            normed = added(rows.times(block.mixer.out, dtype), block.post_norm.weight, fp8)
            del rows
            normed = added(self._feed(block.mlp, normed, dtype), norm, self._rounds(following))
        return normed.x

    def _attend(self, mixer: Attention, layer: int, x: Tensor, ragged: Ragged, rope: Rope, places: Places) -> Tensor:
        """What the heads gather [T, H P]. Keys and values are views of projections, which end with this."""
        given, kept = mixer.heads(x, ragged, rope, self._state.read(layer, places))
        self._state.keep(layer, places, kept)
        return given

    @staticmethod
    def _feed(mlp: MLP, normed: _Rows, dtype: torch.dtype) -> Tensor:
        """The feed-forward of rows [T, D]; what is between its products ends with it."""
        return _gate_up(normed, mlp.gate_up, dtype).times(mlp.down, dtype)

    def _rounds(self, block: Block | None) -> bool:
        # Attention does its own rounding, and the head is not in eight bits.
        return self._fp8 and block is not None and isinstance(block.mixer, Mamba)


def _gate_up(normed: _Rows, gate_up: nn.Linear | Fp8Linear, dtype: torch.dtype) -> _Rows:
    """silu(gate) * up [T, F]."""
    fp8 = normed.scale is not None
    inner = _Rows.empty(normed.x, gate_up.out_features // 2, fp8)
    if not fp8 and serves(inner.x.shape[0], gate_up.weight):
        gated(normed.x, gate_up.weight, inner.x)
    else:
        swiglu(normed.times(gate_up, dtype), inner.x, inner.scale)
    return inner
