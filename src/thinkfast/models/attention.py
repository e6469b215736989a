"""Grouped-query attention with rotary positions: full, step and matrix forms.

Legend: T total tokens, B rows, n sequences, L length, H heads, K key-value heads, P head dim, D model width.

Source: Llama's attention (arXiv 2307.09288); rotary embedding in the half-split layout that transformers uses.

Usage: ``Attention(spec)(x, ragged, rope)``; one token at a time: ``Attention(spec).step(x, rope, cache)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinkfast.models.precision import at_least_fp32
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import ModelSpec

# Queries for which a mask over all keys is made at once.
_MASKED = 256


@dataclass(frozen=True, slots=True)
class KVState:
    """What attention leaves behind after a prefill: k (rotated) and v, each [T, K, P] in flat layout."""

    k: Tensor
    v: Tensor


class AttentionCache(Protocol):
    """One attention layer's view of the cache during a decode step."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Append k, v [B, K, P] at each row's end and attend with q [B, H, P] over the row's context: [B, H, P]."""
        ...


@dataclass(frozen=True, slots=True)
class Rope:
    """Cosines and sines of the tokens at hand, each [T, P / 2]."""

    cos: Tensor
    sin: Tensor

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate x [T, heads, P] by its positions."""
        half = x.shape[-1] // 2
        cos, sin = self.cos[:, None, :], self.sin[:, None, :]
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def rope_frequencies(spec: ModelSpec) -> Tensor:
    """Inverse wavelengths [P / 2] in fp32, with Llama-3's scaling where the spec has it."""
    inv = spec.rope_theta ** (-torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim)
    if (s := spec.rope_scaling) is None:
        return inv
    wavelength = 2 * math.pi / inv
    smooth = (s.original_max_positions / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return inv * (smooth + (1 - smooth) / s.factor)


def rope_tables(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> Rope:
    """The rotation of ``positions`` [T]; angles are formed in fp32 whatever ``dtype`` is asked for."""
    angles = positions.to(torch.float32)[:, None] * frequencies
    return Rope(angles.cos().to(dtype), angles.sin().to(dtype))


class Attention(nn.Module):
    """Causal grouped-query attention; q, k and v come from one fused projection."""

    kind = "attention"

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = spec.n_heads, spec.n_kv_heads, spec.head_dim
        self.scale = spec.head_dim**-0.5
        self.norm_eps = spec.norm_eps
        rows = (spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim
        self.qkv = nn.Linear(spec.d_model, rows, bias=spec.qkv_bias)
        self.out = nn.Linear(spec.n_heads * spec.head_dim, spec.d_model, bias=False)
        self.q_norm = nn.Parameter(torch.ones(spec.head_dim)) if spec.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(spec.head_dim)) if spec.qk_norm else None

    def project(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, D] to rotated q [T, H, P], rotated k [T, K, P] and v [T, K, P]."""
        heads = self.qkv(x).view(x.shape[0], -1, self.head_dim)
        qk, v = heads.split_with_sizes((self.n_heads + self.n_kv_heads, self.n_kv_heads), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split_with_sizes((self.n_heads, self.n_kv_heads), dim=1)
            shape = (self.head_dim,)
            qk = torch.cat(
                (F.rms_norm(q, shape, self.q_norm, self.norm_eps), F.rms_norm(k, shape, self.k_norm, self.norm_eps)), 1
            )
        # One rotation serves q and k: half as many small operations in a decode step.
        q, k = rope.rotate(qk).split_with_sizes((self.n_heads, self.n_kv_heads), dim=1)
        return q, k, v

    def heads(self, x: Tensor, ragged: Ragged, rope: Rope, past: KVState | None = None) -> tuple[Tensor, KVState]:
        """Full form before the output projection: x [T, D] to what the heads gather [T, H P], and the KV left.
        ``past``: the KV of the tokens before, where ``ragged`` is one sequence that goes on.
        """
        q, k, v = self.project(x, rope)
        if past is not None:
            return self._behind(q, torch.cat((past.k, k)), torch.cat((past.v, v))), KVState(k, v)
        if (alike := ragged.alike) is None:
            return self._gather(q, k, v, ragged), KVState(k, v)
        parts = zip(*alike.split(q, k, v), alike.parts, strict=True)
        return torch.cat([self._gather(*part) for part in parts])[alike.back], KVState(k, v)

    def _gather(self, q: Tensor, k: Tensor, v: Tensor, ragged: Ragged) -> Tensor:
        """Causal attention over padded views: q [T, H, P], k and v [T, K, P] to [T, H P]."""
        qp, kp, vp = (ragged.pad(t).transpose(1, 2) for t in (q, k, v))
        gqa = self.n_heads != self.n_kv_heads
        o = F.scaled_dot_product_attention(qp, kp, vp, is_causal=True, scale=self.scale, enable_gqa=gqa)
        return ragged.unpad(o.transpose(1, 2)).reshape(q.shape[0], -1)

    def _behind(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the last T tokens of a sequence over all of it: q [T, H, P], k and v [S, K, P] to [T, H P]."""
        heads = [t.transpose(0, 1)[None] for t in (q, k, v)]
        if q.is_cuda and self._flash(*heads):
            # For this operation, which has no public name, causal means that queries and keys end together. A name it
            # has, torch.nn.attention.bias, imports torch's compiler.
            found = torch.ops.aten._scaled_dot_product_flash_attention(*heads, is_causal=True, scale=self.scale)[0]
        else:
            found = self._masked(*heads)
        return cast(Tensor, found)[0].transpose(0, 1).reshape(len(q), -1)

    def _flash(self, q: Tensor, k: Tensor, v: Tensor) -> bool:
        """Whether flash attention takes these: not on a GPU before Ampere, nor in fp32, nor heads of more than 256."""
        gqa = self.n_heads != self.n_kv_heads
        params = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, gqa)
        return self.head_dim % 8 == 0 and torch.backends.cuda.can_use_flash_attention(params)

    def _masked(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same of q [1, H, T, P], k and v [1, K, S, P] with masks: [1, H, T, P]."""
        before, gqa, found = k.shape[2] - q.shape[2], self.n_heads != self.n_kv_heads, []
        for begin in range(0, q.shape[2], _MASKED):
            some = q[:, :, begin : begin + _MASKED]
            first, seen = before + begin, before + begin + some.shape[2]
            mask = torch.ones(some.shape[2], seen, dtype=torch.bool, device=q.device).tril_(first)
            part = some, k[:, :, :seen], v[:, :, :seen]
            found.append(F.scaled_dot_product_attention(*part, attn_mask=mask, scale=self.scale, enable_gqa=gqa))
        return torch.cat(found, 2)

    def prefill(self, x: Tensor, ragged: Ragged, rope: Rope, past: KVState | None = None) -> tuple[Tensor, KVState]:
        """Full form: x [T, D] to the mixer's output [T, D] and the KV it leaves behind; ``past`` as for ``heads``."""
        gathered, state = self.heads(x, ragged, rope, past)
        return self.out(gathered), state

    def forward(self, x: Tensor, ragged: Ragged, rope: Rope) -> Tensor:
        """Full form: x [T, D] to [T, D]."""
        return self.prefill(x, ragged, rope)[0]

    def step(self, x: Tensor, rope: Rope, cache: AttentionCache) -> Tensor:
        """Step form: one token a row, x [B, D] to [B, D]; the cache keeps k and v."""
        q, k, v = self.project(x, rope)
        return cast(Tensor, self.out(cache.attend(q, k, v, self.scale).reshape(x.shape[0], -1)))

    def matrix(self, x: Tensor, ragged: Ragged, rope: Rope, rows: Tensor | None = None) -> Tensor:
        """Matrix form: softmax weights [n, H, R, L] of the positions ``rows`` [R] (all L where None).

        Rows past a sequence's end are zero.
        """
        q, k, _ = self.project(x, rope)
        rows = torch.arange(ragged.max_len, device=x.device) if rows is None else rows
        q, k = ragged.pad(q)[:, rows].transpose(1, 2), ragged.pad(k).transpose(1, 2)
        k = k.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)
        scores = at_least_fp32(q @ k.transpose(-1, -2)) * self.scale
        causal = rows[:, None] >= torch.arange(ragged.max_len, device=x.device)
        weights = scores.masked_fill(~causal, float("-inf")).softmax(-1)
        return cast(Tensor, weights * ragged.valid[:, None, rows, None])
