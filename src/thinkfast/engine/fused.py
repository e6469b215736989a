"""The decode step on a CPU with weights prepared for it: the same sums as Decoder.step in half as many operations.

At 64 rows a step of a small model is as much dispatch as arithmetic. So norms' scales and the skip of norms of one
head are folded into the matrices behind them, matrices lie the way the product reads them, residuals are added by the
product itself, rotations are looked up, and everything lands in buffers that are there already. Decoder.step is the
reference; tests hold the two together.

Legend: B rows, D model width, F feed-forward width, H heads, K key-value heads, G = H / K, P head dim, N state,
C conv channels, W conv width, V vocabulary.

Usage: ``step = FusedStep(model, max_len) if fusible(model) else model.step``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinkfast.models.attention import Attention, AttentionCache, Rope
from thinkfast.models.decoder import Block, Decoder, StepCache
from thinkfast.models.mixers import Mamba, SSMCache

# Prepared weights are a second copy, which a model that strains memory cannot afford and does not need: its products
# outweigh the dispatch.
MAX_BYTES = 1 << 28


def fusible(model: Decoder) -> bool:
    """Whether FusedStep can stand in for ``model.step``."""
    weight = model.head_weight
    size = model.spec.n_params * weight.dtype.itemsize
    return (
        weight.device.type == "cpu" and weight.dtype == torch.float32 and size <= MAX_BYTES and not model.spec.qk_norm
    )


@dataclass(frozen=True, slots=True)
class _Linear:
    """x @ weight + bias with weight [in, out]; ``scale`` [in] is what a norm multiplies x with."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, linear: nn.Linear, scale: Tensor | None = None) -> _Linear:
        weight = linear.weight if scale is None else linear.weight * scale
        return cls(weight.t().contiguous(), linear.bias)

    def into(self, out: Tensor, x: Tensor) -> Tensor:
        """x [B, in] to ``out`` [B, out]."""
        if self.bias is None:
            return torch.mm(x, self.weight, out=out)
        return torch.addmm(self.bias, x, self.weight, out=out)

    def onto(self, residual: Tensor, x: Tensor) -> None:
        """Add the product of x [B, in] to ``residual`` [B, out]."""
        residual.addmm_(x, self.weight)
        if self.bias is not None:
            residual.add_(self.bias)


class _Norm:
    """RMS norm without scale in four operations, three of them on one number a row."""

    def __init__(self, width: int, eps: float) -> None:
        self._share, self._eps = 1 / width, torch.tensor(eps)

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.mul(x, torch.addcmul(self._eps, length, length, value=self._share).rsqrt_(), out=out)


class _AttentionStep:
    def __init__(self, mixer: Attention, scale: Tensor) -> None:
        self.qkv, self.out = _Linear.of(mixer.qkv, scale), _Linear.of(mixer.out)
        self.heads, self.kv, self.p, self.scale = mixer.n_heads, mixer.n_kv_heads, mixer.head_dim, mixer.scale

    def make(self, rows: int) -> None:
        """Cut buffers for ``rows`` rows."""
        self._qkv = torch.empty(rows, self.qkv.weight.shape[1])
        both = self.heads + self.kv
        heads = self._qkv.view(rows, both + self.kv, self.p)
        half = self.p // 2
        self._qk, self._v = heads[:, :both], heads[:, both:]
        self._low, self._high = self._qk[..., :half], self._qk[..., half:]
        self._turned = torch.empty(rows, both, self.p)
        self._turned_low, self._turned_high = self._turned[..., :half], self._turned[..., half:]
        self._q, self._k = self._turned[:, : self.heads], self._turned[:, self.heads :]

    def __call__(self, normed: Tensor, residual: Tensor, rope: Rope, cache: StepCache) -> None:
        self.qkv.into(self._qkv, normed)
        torch.mul(self._qk, rope.cos, out=self._turned)
        self._turned_low.addcmul_(self._high, rope.sin, value=-1)
        self._turned_high.addcmul_(self._low, rope.sin)
        o = cast(AttentionCache, cache).attend(self._q, self._k, self._v, self.scale)
        self.out.onto(residual, o.view(residual.shape[0], -1))


class _MambaStep:
    def __init__(self, mixer: Mamba, scale: Tensor) -> None:
        h, kv, p, n = mixer.n_heads, mixer.kv_heads, mixer.head_dim, mixer.d_state
        self.h, self.kv, self.g, self.p, self.n, self.conv_sizes = h, kv, h // kv, p, n, mixer.conv_sizes
        self.into, self.out = _Linear.of(mixer.in_proj, scale), _Linear.of(mixer.out, mixer.norm_weight)
        self.inner, self.conv_end = h * p, h * p + sum(mixer.conv_sizes)
        self.taps, self.conv_bias = mixer.conv_weight.t().contiguous(), mixer.conv_bias
        self.dt_bias, self.rates = mixer.dt_bias, -mixer.A_log.exp()
        self.skip = mixer.D.view(kv, self.g, 1)
        self.norm = _Norm(p, mixer.norm_eps)

    def make(self, rows: int) -> None:
        """Cut buffers for ``rows`` rows."""
        self._in = torch.empty(rows, self.into.weight.shape[1])
        self._z = self._in[:, : self.inner].view(rows, self.h, self.p)
        self._xbc, self._dt = self._in[:, self.inner : self.conv_end], self._in[:, self.conv_end :]
        self._conv = torch.empty(rows, sum(self.conv_sizes))
        x, b, c = self._conv.split_with_sizes(self.conv_sizes, dim=1)
        self._x = x.view(rows, self.kv, 1, self.p)
        self._b, self._c = b.view(rows, self.kv, 1, self.n, 1), c
        self._scaled = torch.empty(rows, self.kv, self.g, self.p)
        self._y = torch.empty(rows * self.h, 1, self.p)

    def __call__(self, normed: Tensor, residual: Tensor, rope: Rope, cache: StepCache) -> None:
        rows, view = residual.shape[0], cast(SSMCache, cache)
        self.into.into(self._in, normed)
        conv, past = self._conv, view.conv
        torch.addcmul(self.conv_bias, self._xbc, self.taps[-1], out=conv)
        for i, tap in enumerate(self.taps[:-1]):
            conv.addcmul_(past[:, i], tap)
        for i in range(past.shape[1] - 1):
            past[:, i] = past[:, i + 1]
        past[:, -1] = self._xbc
        F.silu(conv, inplace=True)

        dt = F.softplus(self._dt + self.dt_bias)
        torch.mul(self._x, dt.view(rows, self.kv, self.g, 1), out=self._scaled)
        # As [N, P], the way the slots keep it, so that C S reads along rows.
        state = view.ssm.transpose(-1, -2)
        state.mul_((dt * self.rates).exp_()[..., None, None])
        state.view(rows, self.kv, self.g, self.n, self.p).addcmul_(self._b, self._scaled[..., None, :])
        torch.bmm(self._c.reshape(rows * self.h, 1, self.n), state.view(rows * self.h, self.n, self.p), out=self._y)

        self._y.view(rows, self.kv, self.g, self.p).addcmul_(self.skip, self._x)
        y = self._y.view(rows, self.h, self.p).mul_(F.silu(self._z))
        self.out.onto(residual, self.norm(y, y).view(rows, -1))


class _MLPStep:
    def __init__(self, block: Block) -> None:
        self.up, self.down = _Linear.of(block.mlp.gate_up, block.post_norm.weight), _Linear.of(block.mlp.down)

    def make(self, rows: int) -> None:
        """Cut buffers for ``rows`` rows."""
        self._both = torch.empty(rows, self.up.weight.shape[1])
        self._gate, self._up = self._both.chunk(2, dim=1)
        self._act = torch.empty_like(self._gate, memory_format=torch.contiguous_format)

    def __call__(self, normed: Tensor, residual: Tensor) -> None:
        self.up.into(self._both, normed)
        torch.mul(F.silu(self._gate), self._up, out=self._act)
        self.down.onto(residual, self._act)


class FusedStep:
    """``model``'s decode step for rows of at most ``max_len`` tokens, from tokens to logits."""

    def __init__(self, model: Decoder, max_len: int) -> None:
        spec = model.spec
        self._embed, self._norm = model.embed.weight, _Norm(spec.d_model, spec.norm_eps)
        self._head = (model.head_weight * model.norm.weight).t().contiguous()
        self._layers: list[tuple[_AttentionStep | _MambaStep, _MLPStep]] = []
        for block in model.blocks:
            mixer, scale = block.mixer, block.input_norm.weight
            step = _AttentionStep(mixer, scale) if isinstance(mixer, Attention) else _MambaStep(mixer, scale)
            self._layers.append((step, _MLPStep(block)))
        table = model.rope(torch.arange(max_len if spec.n_attention else 0))
        self._cos, self._sin = torch.cat((table.cos, table.cos), 1), table.sin.contiguous()
        self._rows = -1

    def _make(self, rows: int) -> None:
        self._x, self._normed = (torch.empty(rows, self._embed.shape[1]) for _ in range(2))
        self._logits = torch.empty(rows, self._head.shape[1])
        for mixer, mlp in self._layers:
            mixer.make(rows)
            mlp.make(rows)
        self._rows = rows

    def __call__(self, tokens: Tensor, positions: Tensor, caches: Sequence[StepCache]) -> Tensor:
        """tokens [B], positions [B] and each layer's cache to logits [B, V], valid until the next call."""
        if tokens.shape[0] != self._rows:
            self._make(tokens.shape[0])
        x, normed, norm = self._x, self._normed, self._norm
        torch.index_select(self._embed, 0, tokens, out=x)
        rope = Rope(self._cos, self._sin)
        if self._cos.shape[0]:
            rope = Rope(self._cos[positions][:, None], self._sin[positions][:, None])
        for (mixer, mlp), cache in zip(self._layers, caches, strict=True):
            mixer(norm(x, normed), x, rope, cache)
            mlp(norm(x, normed), x)
        return torch.mm(norm(x, normed), self._head, out=self._logits)
