"""What one decode step has to move and compute, and the seconds no kernel can beat on a given machine.

The bound is the sum over a step's operations of max(bytes / bandwidth, FLOPs / peak). Activations are left out;
weights and KV are read once, states read and written once, logits written and read once, x and B compact.

Legend: B rows, c context tokens a row, D model width, F feed-forward width, H heads, K key-value heads, P head dim,
N state, W convolution width, C conv channels, V vocabulary, w parameters of a projection, s bytes an item.

    kind     bytes                        FLOPs
    gemm     w s                          2 B w
    kv       2 B c K P s                  4 B c H P            an attention layer
    state    2 B (H P N + W C) s          B (5 H P N + 2 W C)  a Mamba layer
    logits   2 B V s                      0

Usage: ``decode_step(spec, batch=64, context=320).seconds(machine)``. Source: the bound of FACTS.md section 1
(shared/tools/bound.py), which counts no FLOPs of attention and state; equal wherever bytes bind those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from thinkfast.models.spec import ModelSpec

Kind = Literal["gemm", "kv", "state", "logits"]
KINDS: tuple[Kind, ...] = ("gemm", "kv", "state", "logits")


@dataclass(frozen=True, slots=True)
class Machine:
    """peak: FLOP/s of a large matrix product. rates: (working set in bytes, B/s from memory or cache), by size.

    A CPU's caches hold a small model whole, so its bandwidth depends on what a step touches; a GPU has one rate.
    """

    name: str
    peak: float
    rates: tuple[tuple[float, float], ...]

    def bandwidth(self, working_set: float) -> float:
        """B/s for data cycled through every step; between measured sizes by the logarithm of the size."""
        below = [pair for pair in self.rates if pair[0] <= working_set]
        above = [pair for pair in self.rates if pair[0] > working_set]
        if not below or not above:
            return self.rates[0][1] if above else self.rates[-1][1]
        (size, rate), (next_size, next_rate) = below[-1], above[0]
        share = math.log(working_set / size) / math.log(next_size / size)
        return float(rate * (next_rate / rate) ** share)


@dataclass(frozen=True, slots=True)
class ItemSizes:
    """Bytes of one weight, one cached key or value channel, one state entry, one logit; of one weight of the head,
    where that differs.
    """

    weight: int = 2
    kv: int = 2
    state: int = 2
    logit: int = 2
    head: int | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """``count`` equal operations of a step; bytes and FLOPs are of one of them; speed: in multiples of the peak."""

    kind: Kind
    name: str
    count: int
    bytes: float
    flops: float
    speed: float = 1.0


@dataclass(frozen=True, slots=True)
class StepCost:
    """The operations of one decode step of a whole batch."""

    operations: tuple[Operation, ...]

    def bytes(self, kind: Kind | None = None) -> float:
        """Bytes moved, of one kind of operation or all."""
        return sum(o.count * o.bytes for o in self.operations if kind in (None, o.kind))

    def flops(self, kind: Kind | None = None) -> float:
        """FLOPs, of one kind of operation or all."""
        return sum(o.count * o.flops for o in self.operations if kind in (None, o.kind))

    def seconds(self, machine: Machine, kind: Kind | None = None) -> float:
        """The bound: what the operations, of one kind or all, take at least."""
        rate = machine.bandwidth(self.bytes())
        return sum(
            o.count * max(o.bytes / rate, o.flops / (o.speed * machine.peak))
            for o in self.operations
            if kind in (None, o.kind)
        )


def decode_step(spec: ModelSpec, batch: int, context: float, sizes: ItemSizes | None = None) -> StepCost:
    """The cost of one token for each of ``batch`` rows that attend over ``context`` tokens on average."""
    s = sizes or ItemSizes()
    d, h, p, n = spec.d_model, spec.n_heads, spec.head_dim, spec.d_state
    attention, mamba = spec.n_attention, spec.n_layers - spec.n_attention

    def gemm(name: str, count: int, rows: int, columns: int, size: int = s.weight) -> Operation:
        # A GPU multiplies eight bits at twice the rate of sixteen, in which the machine was measured.
        speed = 2.0 if size == 1 else 1.0
        return Operation("gemm", name, count, rows * columns * size, 2.0 * batch * rows * columns, speed)

    operations = [
        gemm("feed-forward", spec.n_layers, 3 * d, spec.d_ff),
        gemm("vocabulary", 1, d, spec.vocab_size, s.weight if s.head is None else s.head),
        Operation("logits", "logits", 1, 2 * batch * spec.vocab_size * s.logit, 0.0),
    ]
    if attention:
        kv_bytes = batch * context * spec.kv_bytes_per_token(s.kv) / attention
        operations += [
            gemm("q, k, v and output", attention, d, 2 * h * p + 2 * spec.n_kv_heads * p),
            Operation("kv", "attention", attention, kv_bytes, 4.0 * batch * context * h * p),
        ]
    if mamba:
        ssm, conv = h * p * n, spec.d_conv * spec.conv_channels
        operations += [
            gemm("z, x, B, C, dt and output", mamba, d, spec.in_proj_rows + h * p),
            Operation("state", "state", mamba, 2 * batch * (ssm + conv) * s.state, batch * (5.0 * ssm + 2.0 * conv)),
        ]
    return StepCost(tuple(operations))


def as_dict(cost: StepCost, machine: Machine) -> dict[str, dict[str, float]]:
    """Bytes, FLOPs and bound in ms by kind of operation, and of the whole step under "all"."""
    kinds = [kind for kind in KINDS if cost.bytes(kind)]
    return {
        kind or "all": {
            "bytes": cost.bytes(kind),
            "flops": cost.flops(kind),
            "bound_ms": 1e3 * cost.seconds(machine, kind),
        }
        for kind in (*kinds, None)
    }
