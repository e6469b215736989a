"""The Mamba-2-in-Llama mixer in three equal forms: parallel (chunked), step, and materialised matrix.

Legend: T total tokens, B rows, n sequences, L length, H heads, K key-value heads (compact x and B), G = H / K,
P head dim, N state, Q chunk, C conv channels, D model width.

    z, x, B, C, dt = in_proj(u)        x, B at KV width; C and dt per head
    x, B, C = silu(conv(x, B, C))      causal depthwise convolution
    S_t = exp(dt A) S_{t-1} + dt x B^T     y_t = S_t C_t + D x_t
    out = out_proj(norm_per_head(y * silu(z)))

This is the form that stock GraniteMoeHybrid forces (FACTS.md, section 3); state-space duality after
arXiv 2405.21060, sections 3 and 6. dt = softplus(dt + dt_bias) is not clamped, A = -exp(A_log). Decays and sums run
in at least fp32 whatever the weights are in; a cache may keep its state in any dtype.

Usage: ``Mamba(spec)(u, ragged)``; one token at a time: ``Mamba(spec).step(u, cache)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinkfast.models.conv import conv_silu, conv_step
from thinkfast.models.precision import at_least_fp32
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import ModelSpec
from thinkfast.models.ssd import CHUNK, ssd_carry, ssd_matrix, ssd_step
from thinkfast.models.ssd_fast import ssd_parallel


@dataclass(frozen=True, slots=True)
class SSMState:
    """What a Mamba layer carries from token to token.

    conv: the last d_conv - 1 inputs of the convolution [n, d_conv - 1, C]; ssm: the state [n, H, P, N].
    """

    conv: Tensor
    ssm: Tensor


class SSMCache(Protocol):
    """One Mamba layer's view of the cache during a decode step; both tensors are updated in place."""

    @property
    def conv(self) -> Tensor:
        """[B, d_conv - 1, C]."""
        ...

    @property
    def ssm(self) -> Tensor:
        """[B, H, P, N]."""
        ...


def _chunk(ragged: Ragged) -> int:
    """Tokens of a chunk: the fewest chunks there can be, and as little padding as they allow. In training all are of
    one size, so that a batch's parts add up to the batch.
    """
    count = max(1, -(-ragged.max_len // CHUNK))
    return CHUNK if torch.is_grad_enabled() else max(1, -(-ragged.max_len // count))


class Mamba(nn.Module):
    """Mamba-2 mixer with per-head groups, compact x and B, and a per-head gated RMSNorm."""

    kind = "mamba"

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        h, k, p, s = spec.n_heads, spec.ssm_kv_heads, spec.head_dim, spec.d_state
        self.n_heads, self.kv_heads, self.head_dim, self.d_state, self.d_conv = h, k, p, s, spec.d_conv
        self.norm_eps = spec.norm_eps
        self.sizes = (h * p, spec.conv_channels, h)
        self.conv_sizes = (k * p, k * s, h * s)
        self.in_proj = nn.Linear(spec.d_model, spec.in_proj_rows, bias=spec.ssm_bias)
        self.conv_weight = nn.Parameter(torch.zeros(spec.conv_channels, spec.d_conv))
        self.conv_bias = nn.Parameter(torch.zeros(spec.conv_channels))
        self.dt_bias = nn.Parameter(torch.zeros(h))
        self.A_log = nn.Parameter(torch.zeros(h))
        self.D = nn.Parameter(torch.ones(h))
        self.norm_weight = nn.Parameter(torch.ones(h * p))
        self.out = nn.Linear(h * p, spec.d_model, bias=spec.ssm_bias)

    def _split(self, xbc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Activated convolution output [..., C] to x [..., K, P], B [..., K, N], C [..., H, N]."""
        lead = xbc.shape[:-1]
        x, b, c = xbc.split_with_sizes(self.conv_sizes, dim=-1)
        return (
            x.view(*lead, self.kv_heads, self.head_dim),
            b.view(*lead, self.kv_heads, self.d_state),
            c.view(*lead, self.n_heads, self.d_state),
        )

    def _finish(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate, per-head norm and output projection: y [T, H, P] with its skip, z [T, H * P] to [T, D]."""
        t, h, p = y.shape
        gated = y * F.silu(z).view(t, h, p)
        normed = F.rms_norm(gated, (p,), None, self.norm_eps).view(t, h * p) * self.norm_weight
        return cast(Tensor, self.out(normed))

    def _dt(self, raw: Tensor) -> Tensor:
        """Step sizes [..., H], in at least fp32 like the decays made of them."""
        return F.softplus(at_least_fp32(raw) + self.dt_bias)

    def _rates(self) -> Tensor:
        """A [H], negative."""
        return -at_least_fp32(self.A_log).exp()

    def _inputs(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u [T, D] to z [T, H P], the convolution's inputs [T, C], and dt [T, H]."""
        z, xbc, dt = self.in_proj(u).split(self.sizes, dim=-1)
        return z, xbc, self._dt(dt)

    def _convolve(
        self, xbc: Tensor, dt: Tensor, ragged: Ragged, past: SSMState | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The convolution's padded window, its activated output, and padded dt."""
        chunk = _chunk(ragged)
        length = -(-ragged.max_len // chunk) * chunk
        window = ragged.pad(xbc, length, self.d_conv - 1)
        if past is not None:
            window[:, : self.d_conv - 1] = past.conv
        return window, conv_silu(window, self.conv_weight, self.conv_bias), ragged.pad(dt, length)

    def _run(self, xbc: Tensor, dt: Tensor, ragged: Ragged, past: SSMState | None = None) -> tuple[Tensor, SSMState]:
        """Convolution and recurrence over padded views: y [T, H, P] with its skip, and the state left."""
        window, xbc, dt = self._convolve(xbc, dt, ragged, past)
        shape = (self.kv_heads, self.head_dim, self.d_state)
        y, state = ssd_parallel(xbc, dt, self._rates(), self.D, shape, _chunk(ragged))
        if past is not None:
            more, kept = ssd_carry(self._split(xbc)[2], dt, self._rates(), past.ssm)
            y, state = y + more, state + kept
        # The window begins W - 1 tokens early, so its rows len .. len + W - 2 are the last W - 1 inputs.
        rows = ragged.lens[:, None] + torch.arange(self.d_conv - 1, device=dt.device)
        conv = window.gather(1, rows[..., None].expand(-1, -1, window.shape[-1]))
        return ragged.unpad(y), SSMState(conv, state)

    def prefill(self, u: Tensor, ragged: Ragged, past: SSMState | None = None) -> tuple[Tensor, SSMState]:
        """Parallel form: u [T, D] to the mixer's output [T, D] and the state after each sequence's last token.
        ``past``: the state before its first one, where that is not the beginning.
        """
        z, xbc, dt = self._inputs(u)
        if (alike := ragged.alike) is None:
            y, state = self._run(xbc, dt, ragged, past)
        else:
            parts = [self._run(*part) for part in zip(*alike.split(xbc, dt), alike.parts, strict=True)]
            y = torch.cat([part[0] for part in parts])[alike.back]
            conv, ssm = (torch.cat([getattr(part[1], name) for part in parts]) for name in ("conv", "ssm"))
            state = SSMState(alike.by_sequence(conv), alike.by_sequence(ssm))
        return self._finish(y.to(u.dtype), z), state

    def forward(self, u: Tensor, ragged: Ragged) -> Tensor:
        """Parallel form: u [T, D] to [T, D]."""
        return self.prefill(u, ragged)[0]

    def matrix(self, u: Tensor, ragged: Ragged, rows: Tensor | None = None) -> Tensor:
        """Matrix form [n, H, R, L] of the positions ``rows`` [R] (all L where None), the skip D on the diagonal.

        Rows past a sequence's end are zero.
        """
        _, xbc, dt = self._inputs(u)
        _, xbc, dt = self._convolve(xbc, dt, ragged)
        length = ragged.max_len
        _, b, c = self._split(xbc[:, :length])
        rows = torch.arange(length, device=u.device) if rows is None else rows
        m = ssd_matrix(b, c, dt[:, :length], self._rates(), rows)
        diagonal = rows[:, None] == torch.arange(length, device=u.device)
        m = m + diagonal.to(m.dtype) * self.D[:, None, None]
        return m * ragged.valid[:, None, rows, None]

    def step(self, u: Tensor, cache: SSMCache) -> Tensor:
        """Step form: one token a row, u [B, D] to [B, D]; the cache's tensors change in place."""
        z, xbc, dt = self.in_proj(u).split(self.sizes, dim=-1)
        x, b, c = self._split(F.silu(conv_step(xbc, cache.conv, self.conv_weight, self.conv_bias)))
        y = ssd_step(x, b, c, self._dt(dt), self._rates(), cache.ssm).to(u.dtype)
        skip = self.D.view(self.kv_heads, -1, 1) * x[:, :, None, :]
        return self._finish(y + skip.view_as(y), z)
