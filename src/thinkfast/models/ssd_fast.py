"""The parallel form of state-space duality with its skip, as one differentiable step with its own backward pass.

Legend: n sequences, L length, H heads, K key-value heads, G = H / K, P head dim, N state, Q chunk, m chunks,
E = n m K (one entry a chunk and key-value head).

Same mathematics as ``ssd.ssd_chunked``, the reference. What makes it fast: heads that share x and B are folded into
the rows of one product; dt goes into the exponent of the decay (exp(t_i - t_j + log dt_j)), so no pass is spent on
it; and the backward pass never differentiates the decay matrix entry by entry: with W the mixing matrix,
the row sums of dW * W are dY . Y and its column sums come from the gradients of x, which are formed anyway.

Usage: ``y, state = ssd_parallel(xbc, dt, a, d, (K, P, N))``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from thinkfast.models.precision import at_least_fp32
from thinkfast.models.ssd import CHUNK

Shape = tuple[int, int, int]


def ssd_parallel(
    xbc: Tensor, dt: Tensor, a: Tensor, d: Tensor, shape: Shape, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """y [n, L, H, P] = SSD(x, B, C) + D x, and the final state [n, H, P, N], both in at least fp32.

    xbc [n, L, K P + K N + H N] activated, dt [n, L, H] after softplus, a and d [H], ``shape`` (K, P, N). L must be a
    multiple of ``chunk``: pad on the right with dt = 0. The gradient at the state is zero: callers that pass it on
    differentiate nothing through it. Source: arXiv 2405.21060, section 6.
    """
    apply = cast(Callable[..., tuple[Tensor, Tensor]], _SSD.apply)
    with torch.autocast(xbc.device.type, enabled=False):  # it would put the products, not the decays, back into bf16
        return apply(at_least_fp32(xbc), at_least_fp32(dt), at_least_fp32(a), at_least_fp32(d), shape, chunk)


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, xbc: Tensor, dt: Tensor, a: Tensor, d: Tensor, shape: Shape, chunk: int
    ) -> tuple[Tensor, Tensor]:
        n, length, _ = xbc.shape
        kv, p, states = shape
        heads = a.shape[0]
        g, m, q = heads // kv, length // chunk, chunk
        e = n * m * kv
        x, b, c = xbc.split_with_sizes((kv * p, kv * states, heads * states), dim=-1)
        x = x.reshape(n, m, q, kv, p).transpose(2, 3).reshape(e, q, p)
        b = b.reshape(n, m, q, kv, states).transpose(2, 3).reshape(e, q, states)
        c = c.reshape(n, m, q, kv, g, states).permute(0, 1, 3, 4, 2, 5).reshape(e, g * q, states)
        steps = dt.view(n, m, q, kv, g).permute(0, 1, 3, 4, 2).contiguous()  # [n, m, K, G, Q]
        total = (steps * a.view(kv, g, 1)).cumsum(-1)
        source = total - steps.log()

        decay = total.unsqueeze(-1) - source.unsqueeze(-2)
        decay.masked_fill_(_above(q, xbc.device), float("-inf"))
        decay = decay.exp_().view(e, g * q, q)
        mixing = torch.bmm(c, b.transpose(1, 2)).mul_(decay)
        y = torch.bmm(mixing, x)

        to_end = (total[..., -1:] - source).exp_().view(e, g, q, 1)
        from_start = total.exp().view(e, g, q, 1)
        weighted = (x.unsqueeze(1) * to_end).transpose(2, 3).reshape(e, g * p, q)
        state = torch.bmm(weighted, b).view(n, m, kv, g, p, states)
        keep = total[..., -1].exp()[..., None, None]
        # In place, chunk by chunk: what a chunk adds becomes the state after it.
        for i in range(1, m):
            state[:, i].addcmul_(state[:, i - 1], keep[:, i])
        entering = torch.zeros_like(state)
        entering[:, 1:] = state[:, :-1]
        scaled = (c.view(e, g, q, states) * from_start).view(e * g, q, states)
        y = y.view(e * g, q, p).baddbmm_(scaled, entering.view(e * g, p, states).transpose(1, 2))
        final = state[:, -1].reshape(n, heads, p, states).clone()

        ctx.save_for_backward(x, b, c, steps, a, d, decay, mixing, to_end, from_start, keep, state, entering, y)
        ctx.sizes = (n, m, q, kv, g, p, states)
        out = torch.addcmul(y.view(n, m, kv, g, q, p), x.view(n, m, kv, 1, q, p), d.view(kv, g, 1, 1))
        return out.permute(0, 1, 4, 2, 3, 5).reshape(n, length, heads, p), final

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        x, b, c, steps, a, d, decay, mixing, to_end, from_start, keep, state, entering, y = ctx.saved_tensors
        n, m, q, kv, g, p, states = ctx.sizes
        e = n * m * kv
        dy = upstream[0].view(n, m, q, kv, g, p).permute(0, 1, 3, 4, 2, 5).reshape(e, g * q, p)
        by_head = dy.view(e, g, q, p)

        dmixing = torch.bmm(dy, x.transpose(1, 2))
        columns = None if g == 1 else (dmixing * mixing).view(e, g, q, q).sum(2)
        dscores = dmixing.mul_(decay)
        dc = torch.bmm(dscores, b)
        db = torch.bmm(dscores.transpose(1, 2), c)
        dx = torch.bmm(mixing.transpose(1, 2), dy)
        if columns is None:
            columns = (dx * x).sum(-1).view(e, 1, q)

        # Through the states that chunks pass on: after[i] is the gradient at the state after chunk i.
        arriving = (by_head * from_start).view(e * g, q, p)
        dc.view(e, g, q, states).add_(torch.bmm(arriving, entering.view(e * g, p, states)).view(e, g, q, states))
        leaving = torch.bmm(arriving.transpose(1, 2), c.reshape(e * g, q, states))
        leaving = leaving.view(n, m, kv, g, p, states)
        after = torch.zeros_like(state)
        for i in range(m - 2, -1, -1):
            torch.addcmul(leaving[:, i + 1], after[:, i + 1], keep[:, i + 1], out=after[:, i])
        flat = after.view(e, g * p, states)
        weighted = (x.unsqueeze(1) * to_end).permute(0, 2, 1, 3).reshape(e, q, g * p)
        db.baddbmm_(weighted, flat)
        dweighted = torch.bmm(b, flat.transpose(1, 2)).view(e, q, g, p).transpose(1, 2) * to_end
        columns = columns + (dweighted * x.unsqueeze(1)).sum(-1)
        dx += dweighted.sum(1)
        at_end = (after * state).sum((-1, -2))

        rows = (by_head * y.view(e, g, q, p)).sum(-1)
        dtotal = (rows - columns).view(n, m, kv, g, q)
        dtotal[..., -1] += at_end
        dlog = dtotal.sum(-1, keepdim=True) - dtotal.cumsum(-1) + dtotal
        columns = columns.view(n, m, kv, g, q)
        # d exp(log dt) = columns / dt; where dt is 0 (padding) the column is 0 too.
        dsteps = dlog * a.view(kv, g, 1) + columns / steps.clamp_min(torch.finfo(steps.dtype).tiny)
        da = (dlog * steps).sum((0, 1, 4)).view(-1)

        skip = d.view(kv, g, 1, 1)
        dd = (by_head.view(n * m, kv, g, q, p) * x.view(n * m, kv, 1, q, p)).sum((0, 3, 4)).view(-1)
        dx += (dy.view(n * m, kv, g, q, p) * skip).sum(2).view(e, q, p)

        dxbc = torch.cat(
            (
                dx.view(n, m, kv, q, p).transpose(2, 3).reshape(n, m * q, kv * p),
                db.view(n, m, kv, q, states).transpose(2, 3).reshape(n, m * q, kv * states),
                dc.view(n, m, kv, g, q, states).permute(0, 1, 4, 2, 3, 5).reshape(n, m * q, kv * g * states),
            ),
            -1,
        )
        return dxbc, dsteps.permute(0, 1, 4, 2, 3).reshape(n, m * q, kv * g), da, dd, None, None


def _above(size: int, device: torch.device) -> Tensor:
    """[Q, Q] True above the diagonal."""
    return torch.ones(size, size, dtype=torch.bool, device=device).triu_(1)
