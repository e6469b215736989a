"""State-space duality in its three equal forms: materialised matrix, parallel (chunked), and step.

Legend: B rows, n sequences, L length, H heads, K key-value heads (compact x and B), G = H / K, P head dim, N state,
Q chunk, R picked rows, m chunks.

    S_t = exp(dt A) S_{t-1} + dt x B^T     y_t = S_t C_t

After arXiv 2405.21060, sections 3 and 6. Decays and sums run in at least fp32. ``ssd_chunked`` is the plain reference
of ``ssd_fast.ssd_parallel``, which training and prefill use.

Usage: ``y, state = ssd_chunked(x, b, c, dt, a)``; ``y = ssd_step(x, b, c, dt, a, state)`` for one more token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from thinkfast.models.precision import at_least_fp32

CHUNK = 32


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


def ssd_carry(c: Tensor, dt: Tensor, a: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """What a state ``initial`` [n, H, P, N] from before the first token adds to y, [n, L, H, P], and to the final
    state: the recurrence is linear in its state. Others as for ``ssd_chunked``.
    """
    c, initial = at_least_fp32(c), at_least_fp32(initial)
    decay = (dt * a).cumsum(1).exp()
    y = (c.transpose(1, 2) @ initial.transpose(-1, -2)).transpose(1, 2) * decay[..., None]
    return y, initial * decay[:, -1, :, None, None]


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
