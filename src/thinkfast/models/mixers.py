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

from thinkfast.models.precision import at_least_fp32
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import ModelSpec

CHUNK = 32


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


def ssd_matrix(b: Tensor, c: Tensor, dt: Tensor, a: Tensor, rows: Tensor | None = None) -> Tensor:
    """Matrix form: M[n, h, i, j] = (C_i . B_j) exp(sum of dt A over (j, i]) dt_j for j <= i, else 0.

    b [n, L, K, N], c [n, L, H, N], dt [n, L, H] (after softplus), a [H] (negative): [n, H, R, L] for the positions
    i in ``rows`` [R], all L where None. Source: arXiv 2405.21060, equation 6. The skip D is not part of it.
    """
    b = b.repeat_interleave(c.shape[2] // b.shape[2], dim=2)
    picked = c if rows is None else c[:, rows]
    scores = at_least_fp32(picked.transpose(1, 2)) @ at_least_fp32(b.permute(0, 2, 3, 1))
    return scores * decay_matrix((dt * a).transpose(1, 2), rows) * dt.transpose(1, 2)[:, :, None, :]


def decay_matrix(log_decay: Tensor, rows: Tensor | None = None) -> Tensor:
    """exp of the segment sums of ``log_decay`` [..., L]: entry (i, j) decays from j to i, 0 above the diagonal.

    [..., R, L] for the positions i in ``rows`` [R], all L where None.
    """
    total = log_decay.cumsum(-1)
    columns = torch.arange(log_decay.shape[-1], device=log_decay.device)
    # A gather, and in the backward pass a scatter, only where rows are picked: every training step comes by here.
    picked, rows = (total, columns) if rows is None else (total[..., rows], rows)
    gap = picked[..., :, None] - total[..., None, :]
    return gap.masked_fill(rows[:, None] < columns, float("-inf")).exp()


def ssd_chunked(
    x: Tensor, b: Tensor, c: Tensor, dt: Tensor, a: Tensor, chunk: int = CHUNK, initial: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Parallel form: quadratic within chunks, a state passed between them.

    x [n, L, K, P], b [n, L, K, N], c [n, L, H, N], dt [n, L, H], a [H], initial [n, H, P, N] or zeros.
    Returns y [n, L, H, P] and the final state [n, H, P, N], both in at least fp32. A position with dt = 0 leaves the
    state untouched, which is how right padding is kept out of it. Source: arXiv 2405.21060, section 6.
    """
    x, b, c, dt, a = (at_least_fp32(t) for t in (x, b, c, dt, a))
    n, length, kv, p = x.shape
    heads, states = c.shape[2], c.shape[3]
    g = heads // kv
    pad = -length % chunk
    if pad:
        x, b, c, dt = (F.pad(t, (0, 0) * (t.dim() - 2) + (0, pad)) for t in (x, b, c, dt))
    m = (length + pad) // chunk
    # Chunks move into the batch: [n, m, K, (G,) Q, ...].
    xc = x.view(n, m, chunk, kv, p).transpose(2, 3)
    bc = b.view(n, m, chunk, kv, states).transpose(2, 3)
    cc = c.view(n, m, chunk, kv, g, states).permute(0, 1, 3, 4, 2, 5)
    dtc = dt.view(n, m, chunk, kv, g).permute(0, 1, 3, 4, 2)
    log_decay = dtc * a.view(kv, g, 1)
    total = log_decay.cumsum(-1)

    scores = cc @ bc.transpose(-1, -2)[:, :, :, None]
    y = (scores * decay_matrix(log_decay) * dtc[..., None, :]) @ xc[:, :, :, None]

    to_end = dtc * (total[..., -1:] - total).exp()
    added = (xc[:, :, :, None] * to_end[..., None]).transpose(-1, -2) @ bc[:, :, :, None]
    keep = total[..., -1].exp()
    state = x.new_zeros(n, kv, g, p, states) if initial is None else initial.reshape(n, kv, g, p, states)
    entering = []
    for i in range(m):
        entering.append(state)
        state = state * keep[:, i, ..., None, None] + added[:, i]
    y = y + (cc * total.exp()[..., None]) @ torch.stack(entering, 1).transpose(-1, -2)
    y = y.permute(0, 1, 4, 2, 3, 5).reshape(n, m * chunk, heads, p)[:, :length]
    return y, state.reshape(n, heads, p, states)


def ssd_step(x: Tensor, b: Tensor, c: Tensor, dt: Tensor, a: Tensor, state: Tensor) -> Tensor:
    """Step form: x [B, K, P], b [B, K, N], c [B, H, N], dt [B, H], a [H]; ``state`` [B, H, P, N] changes in place.

    Returns y [B, H, P]. Products are formed in the state's dtype, the decay in that of dt and a.
    """
    rows, kv, p = x.shape
    heads, states = c.shape[1], c.shape[2]
    g = heads // kv
    scaled = (x[:, :, None, :] * dt.view(rows, kv, g, 1)).to(state.dtype)
    state.mul_((dt * a).exp()[..., None, None])
    view = state.view(rows, kv, g, p, states)
    view.addcmul_(scaled[..., None], b[:, :, None, None, :].to(state.dtype))
    c = c.reshape(rows * heads, states, 1).to(state.dtype)
    return torch.bmm(state.view(rows * heads, p, states), c).view(rows, heads, p)


def conv_parallel(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Causal depthwise convolution of left-padded u [n, L + W - 1, C] with weight [C, W]: [n, L, C]."""
    if u.is_cuda:
        return conv_shifted(u, weight, bias)
    # As a 2-d convolution of height 1, [n, L, C] is what the library calls channels-last: no transposed copies, and
    # on CPUs half the time of shifted multiply-adds, their backward included. Not on GPUs: with it, a distillation
    # step on an H100 took several times as long (docs/lab.md).
    image = u.transpose(1, 2).unsqueeze(2)
    out = F.conv2d(image, weight[:, None, None, :], bias, groups=weight.shape[0])
    return out.squeeze(2).transpose(1, 2)


def conv_shifted(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The reference of ``conv_parallel``: W shifted multiply-adds."""
    width = weight.shape[1]
    length = u.shape[1] - width + 1
    out = torch.addcmul(bias, u[:, :length], weight[:, 0])
    for i in range(1, width):
        out = torch.addcmul(out, u[:, i : i + length], weight[:, i])
    return out


def conv_step(u: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One token of the convolution: u [B, C]; ``state`` [B, W - 1, C] shifts in place. Returns [B, C]."""
    width = weight.shape[1]
    out = torch.addcmul(bias, u, weight[:, -1])
    for i in range(width - 1):
        out.addcmul_(state[:, i], weight[:, i])
    for i in range(width - 2):
        state[:, i] = state[:, i + 1]
    state[:, width - 2] = u
    return out


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

    def _split(self, conv_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Activated convolution output [..., C] to x [..., K, P], B [..., K, N], C [..., H, N]."""
        lead = conv_out.shape[:-1]
        x, b, c = F.silu(conv_out).split_with_sizes(self.conv_sizes, dim=-1)
        return (
            x.view(*lead, self.kv_heads, self.head_dim),
            b.view(*lead, self.kv_heads, self.d_state),
            c.view(*lead, self.n_heads, self.d_state),
        )

    def _finish(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """Skip, gate, per-head norm and output projection: y [T, H, P], x [T, K, P], z [T, H * P] to [T, D]."""
        t, h, p = y.shape
        skip = self.D.view(self.kv_heads, -1, 1) * x[:, :, None, :]
        gated = (y.view(t, self.kv_heads, -1, p) + skip).view(t, h, p) * F.silu(z).view(t, h, p)
        normed = F.rms_norm(gated, (p,), None, self.norm_eps).view(t, h * p) * self.norm_weight
        return cast(Tensor, self.out(normed))

    def _dt(self, raw: Tensor) -> Tensor:
        """Step sizes [..., H], in at least fp32 like the decays made of them."""
        return F.softplus(at_least_fp32(raw) + self.dt_bias)

    def _rates(self) -> Tensor:
        """A [H], negative."""
        return -at_least_fp32(self.A_log).exp()

    def _inputs(self, u: Tensor, ragged: Ragged) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """u [T, D] to z [T, H P], left-padded conv input [n, L+W-1, C], and padded x, B, C, dt."""
        z, xbc, dt = self.in_proj(u).split(self.sizes, dim=-1)
        window = F.pad(ragged.pad(xbc), (0, 0, self.d_conv - 1, 0))
        x, b, c = self._split(conv_parallel(window, self.conv_weight, self.conv_bias))
        return z, window, x, b, c, ragged.pad(self._dt(dt))

    def prefill(self, u: Tensor, ragged: Ragged) -> tuple[Tensor, SSMState]:
        """Parallel form: u [T, D] to the mixer's output [T, D] and the state after each sequence's last token."""
        z, window, x, b, c, dt = self._inputs(u, ragged)
        y, state = ssd_chunked(x, b, c, dt, self._rates())
        out = self._finish(ragged.unpad(y).to(u.dtype), ragged.unpad(x), z)
        # The window is left-padded by W - 1, so its rows len .. len + W - 2 are the last W - 1 inputs.
        rows = ragged.lens[:, None] + torch.arange(self.d_conv - 1, device=u.device)
        conv = window.gather(1, rows[..., None].expand(-1, -1, window.shape[-1]))
        return out, SSMState(conv, state)

    def forward(self, u: Tensor, ragged: Ragged) -> Tensor:
        """Parallel form: u [T, D] to [T, D]."""
        return self.prefill(u, ragged)[0]

    def matrix(self, u: Tensor, ragged: Ragged, rows: Tensor | None = None) -> Tensor:
        """Matrix form [n, H, R, L] of the positions ``rows`` [R] (all L where None), the skip D on the diagonal.

        Rows past a sequence's end are zero.
        """
        _, _, _, b, c, dt = self._inputs(u, ragged)
        rows = torch.arange(ragged.max_len, device=u.device) if rows is None else rows
        m = ssd_matrix(b, c, dt, self._rates(), rows)
        diagonal = rows[:, None] == torch.arange(ragged.max_len, device=u.device)
        m = m + diagonal.to(m.dtype) * self.D[:, None, None]
        return m * ragged.valid[:, None, rows, None]

    def step(self, u: Tensor, cache: SSMCache) -> Tensor:
        """Step form: one token a row, u [B, D] to [B, D]; the cache's tensors change in place."""
        z, xbc, dt = self.in_proj(u).split(self.sizes, dim=-1)
        x, b, c = self._split(conv_step(xbc, cache.conv, self.conv_weight, self.conv_bias))
        y = ssd_step(x, b, c, self._dt(dt), self._rates(), cache.ssm)
        return self._finish(y.to(u.dtype), x, z)
