"""Counter-based random numbers: one uniform per row and step, a pure function of (seed, request, sample, position).

Why: a generator with a state would make a token depend on which rows share its batch. A hash of a key and a counter
does not, runs as a handful of integer operations on any device, and needs nothing to be saved for a resume.

Legend: B rows.

Usage: ``uniform(keys, positions)`` with ``keys`` from ``sample_key(seed, request_id, index)``.
Source: splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def _signed(x: int) -> int:
    """A 64-bit pattern as the int64 that carries it."""
    return x - (1 << 64) if x >= 1 << 63 else x


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)
# 23 bits: u <= 1 - 2**-23, so that u * total < total also after rounding in fp32 and the last token of positive
# probability is the last that can be drawn.
_BITS = 23


def sample_key(seed: int, request: str, index: int) -> int:
    """The int64 key of one sample; equal on every machine and Python version."""
    text = f"{seed}\0{index}\0{request}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def _xor_shift(x: Tensor, shift: int) -> Tensor:
    # >> is arithmetic on int64; the mask turns it into the logical shift that the hash asks for.
    return x.bitwise_xor_((x >> shift).bitwise_and_((1 << (64 - shift)) - 1))


def uniform(keys: Tensor, counters: Tensor) -> Tensor:
    """keys [B] int64, counters [B] int64 to fp32 [B] in [0, 1 - 2**-23]."""
    x = torch.add(keys, counters + 1, alpha=_GOLDEN)
    x = _xor_shift(x, 30).mul_(_MIX1)
    x = _xor_shift(x, 27).mul_(_MIX2)
    x = _xor_shift(x, 31)
    return (x >> (64 - _BITS)).bitwise_and_((1 << _BITS) - 1).to(torch.float32).mul_(2.0**-_BITS)
