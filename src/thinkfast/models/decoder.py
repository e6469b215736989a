"""One decoder for teacher and student, training and inference.

Legend: T total tokens (flat, ragged), B rows, n sequences, D model width, V vocabulary.

A block is Llama's: ``x += mixer(norm(x)); x += mlp(norm(x))``, where the mixer is attention or Mamba by layer.

Usage: ``Decoder(spec)(tokens, Ragged(lens))`` gives hidden states [T, D]; ``logits`` turns them into [T, V].
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinkfast.models.attention import Attention, AttentionCache, KVState, Rope, rope_frequencies, rope_tables
from thinkfast.models.mixers import Mamba, SSMCache, SSMState
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import ModelSpec

LayerState = KVState | SSMState
StepCache = AttentionCache | SSMCache


@dataclass(frozen=True, slots=True)
class Past:
    """What the first ``length`` tokens of one sequence have left behind, layer by layer, when it is asked for."""

    length: int
    states: Iterable[LayerState]


class MLP(nn.Module):
    """SwiGLU feed-forward with gate and up in one projection (arXiv 2002.05202)."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, D] to [T, D]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return cast(Tensor, self.down(F.silu(gate) * up))


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [T, D] to [T, D]."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Block(nn.Module):
    """Norm, mixer, norm, MLP, each behind a residual."""

    def __init__(self, spec: ModelSpec, kind: str) -> None:
        super().__init__()
        self.input_norm = RMSNorm(spec.d_model, spec.norm_eps)
        self.mixer: Attention | Mamba = Attention(spec) if kind == "attention" else Mamba(spec)
        self.post_norm = RMSNorm(spec.d_model, spec.norm_eps)
        self.mlp = MLP(spec.d_model, spec.d_ff)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The block's second half: x [T, D] to [T, D], residual included."""
        return x + cast(Tensor, self.mlp(self.post_norm(x)))

    def mix(self, normed: Tensor, ragged: Ragged, rope: Rope) -> Tensor:
        """The mixer alone on normed input [T, D], in its parallel form."""
        mixer = self.mixer
        mixed = mixer(normed, ragged, rope) if isinstance(mixer, Attention) else mixer(normed, ragged)
        return cast(Tensor, mixed)

    def forward(self, x: Tensor, ragged: Ragged, rope: Rope) -> Tensor:
        """x [T, D] to [T, D]."""
        return self.feed_forward(x + self.mix(self.input_norm(x), ragged, rope))

    def prefill(
        self, x: Tensor, ragged: Ragged, rope: Rope, only: Tensor | None = None, past: LayerState | None = None
    ) -> tuple[Tensor, LayerState]:
        """Like ``forward``, of the tokens ``only`` [n] or of all, behind ``past``; and the state that decoding goes on
        from.
        """
        mixer, normed = self.mixer, self.input_norm(x)
        state: LayerState
        if isinstance(mixer, Attention):
            mixed, state = mixer.prefill(normed, ragged, rope, cast(KVState | None, past))
        else:
            mixed, state = mixer.prefill(normed, ragged, cast(SSMState | None, past))
        x = x + mixed
        return self.feed_forward(x if only is None else x[only]), state

    def step(self, x: Tensor, rope: Rope, cache: StepCache) -> Tensor:
        """One token a row: x [B, D] to [B, D]."""
        mixer, normed = self.mixer, self.input_norm(x)
        if isinstance(mixer, Attention):
            mixed = mixer.step(normed, rope, cast(AttentionCache, cache))
        else:
            mixed = mixer.step(normed, cast(SSMCache, cache))
        return self.feed_forward(x + mixed)


class Decoder(nn.Module):
    """A causal language model over flat, ragged token batches."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab_size, spec.d_model)
        self.layers = nn.ModuleList(Block(spec, kind) for kind in spec.layer_types)
        self.norm = RMSNorm(spec.d_model, spec.norm_eps)
        self.head = None if spec.tie_embeddings else nn.Linear(spec.d_model, spec.vocab_size, bias=False)
        self.frequencies: Tensor
        self.register_buffer("frequencies", rope_frequencies(spec), persistent=False)

    def reset_frequencies(self, device: str | torch.device) -> None:
        """Recompute the rotary frequencies: they are no weight, so a model built on the meta device lacks them."""
        self.frequencies = rope_frequencies(self.spec).to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # to(bfloat16) must round the weights but never the frequencies: an angle at token 1000 would be 4 radians off.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.reset_frequencies(self.frequencies.device)
        return self

    @property
    def blocks(self) -> Sequence[Block]:
        """The layers, typed."""
        return cast(Sequence[Block], self.layers)

    @property
    def head_weight(self) -> Tensor:
        """Output embedding [V, D]."""
        return self.embed.weight if self.head is None else self.head.weight

    def rope(self, positions: Tensor) -> Rope:
        """Rotary tables for ``positions`` [T]."""
        return rope_tables(positions, self.frequencies, self.embed.weight.dtype)

    def forward(self, tokens: Tensor, ragged: Ragged) -> Tensor:
        """tokens [T] to hidden states [T, D] after the final norm."""
        return self.trace(tokens, ragged, keep=False)[0]

    def trace(self, tokens: Tensor, ragged: Ragged, keep: bool = True) -> tuple[Tensor, list[Tensor]]:
        """Like ``forward``, and with ``keep`` the residual stream [T, D] after every block."""
        x, rope = self.embed(tokens), self.rope(ragged.positions)
        stream: list[Tensor] = []
        for block in self.blocks:
            x = block(x, ragged, rope)
            if keep:
                stream.append(x)
        return cast(Tensor, self.norm(x)), stream

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] to logits [..., V]."""
        return F.linear(hidden, self.head_weight)

    def prefill(self, tokens: Tensor, ragged: Ragged, past: Past | None = None) -> tuple[Tensor, list[LayerState]]:
        """tokens [T] to the hidden state of each sequence's last token [n, D] and, per layer, the state that decoding
        goes on from: of attention the KV of these tokens. With a ``past`` they are the next tokens of one sequence.
        """
        x, rope = self.embed(tokens), self.rope(ragged.positions + (past.length if past else 0))
        states: list[LayerState] = []
        for block, before in zip(self.blocks, past.states if past else repeat(None, len(self.blocks)), strict=True):
            x, state = block.prefill(x, ragged, rope, ragged.last if block is self.blocks[-1] else None, before)
            # A layer's k and v are views of what all its heads were made in, which would stay as long as they do.
            state = KVState(state.k.clone(), state.v.clone()) if isinstance(state, KVState) else state
            states.append(state)
        return self.norm(x), states

    def step(self, tokens: Tensor, positions: Tensor, caches: Sequence[StepCache]) -> Tensor:
        """One token a row: tokens [B], positions [B], one cache view a layer, to hidden states [B, D]."""
        x, rope = self.embed(tokens), self.rope(positions)
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block.step(x, rope, cache)
        return cast(Tensor, self.norm(x))


def with_replaced(model: Decoder, others: Mapping[object, object]) -> Decoder:
    """A copy of ``model`` that has others in place of some modules, or of its spec, and shares all other weights."""
    # deepcopy takes what the memo has for an object.
    memo: dict[int, object] = {id(value): value for value in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo | {id(old): new for old, new in others.items()})


def init_weights(model: Decoder, seed: int) -> None:
    """Fresh training weights: normal(0, 0.02), residual outputs scaled by 1 / sqrt(2 layers) (GPT-2's scheme)."""
    generator = torch.Generator().manual_seed(seed)
    depth = (2 * model.spec.n_layers) ** -0.5
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() >= 2:
                std = 0.02 * (depth if name.endswith(("out.weight", "down.weight")) else 1.0)
                p.copy_(torch.randn(p.shape, generator=generator) * std)
