"""Decode attention against its torch reference, on random pages in which what nobody has written is poisoned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")

from comparing import NAN, close, tolerance

from thinkfast.engine.cache import PAGE
from thinkfast.kernels.triton.attention import TILE_ROWS, KVLayer, KVRows, SplitPlan, attend, attend_reference

# The interpreter turns arrays of one element into numbers, of which numpy 2.3 warns.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# Triton's interpreter multiplies bf16 matrices as the integers that carry them, and takes a tenth of a second for each
# program: it gets lists of its own, in which every branch is met once and no case is a skip.
ON_GPU = torch.cuda.is_available()
F32, BF16 = torch.float32, torch.bfloat16
HEADS = [(2, 3, 16, 16, 3, False), (1, 8, 32, 16, 1, True), (3, 1, 16, 16, 1, False), (2, 4, 64, 16, 2, True)]
ATTENTION: list[Any] = [(*heads, F32, False) for heads in HEADS]
# Long contexts: rows, kv heads, group, head dim, shares of a row's own pages and of a prompt's, whether it is shared.
LONG = [(4, 1, 8, 64, 16, 4, False)]
if ON_GPU:
    SPLITS = [(1, False), (3, False), (1, True), (2, True)]
    TOYS = [(2, 3, 16, 16), (1, 8, 32, 16), (3, 1, 16, 16), (2, 4, 64, 16)]
    # Heads of real models on pages of the engine's size: groups up to 8, heads of 64 and 128.
    REAL = [(2, 2, 128, 64), (4, 4, 64, 64), (1, 5, 64, 64), (1, 6, 128, 64), (1, 7, 64, 64), (1, 8, 128, 64)]
    CUT = [(*heads, *split) for heads in TOYS for split in SPLITS]
    CUT += [(*heads, *split) for heads in REAL for split in ((3, False), (2, True))]
    ATTENTION = [(*cut, *kind) for cut in CUT for kind in ((F32, False), (BF16, True))]
    ATTENTION += [(*heads, 2, i % 2 == 0, BF16, False) for i, heads in enumerate(REAL)]
    # In as many shares as the step has for as many rows (engine/cuda/step.py), from one row to a thousand.
    LONG = [(1, 8, 4, 64, 16, 4, False), (1, 2, 8, 128, 16, 4, True), (4, 1, 1, 128, 16, 4, True)]
    LONG += [(64, 1, 8, 64, 16, 4, True), (64, 2, 4, 128, 8, 4, False), (64, 8, 4, 64, 2, 4, True)]
    LONG += [(1024, 1, 4, 128, 1, 1, False), (1024, 1, 2, 64, 1, 1, True), (1024, 1, 8, 128, 1, 1, True)]

# Rows of a context: (tokens shared, tokens before the newest).
Lengths = list[tuple[int, int]]


def few(page: int) -> Lengths:
    """Alone, sharing 5 tokens, sharing 2 pages and more."""
    rows = [(0, 0), (0, 1), (5, 5), (0, page), (5, 9), (2 * page, 2 * page), (0, 3 * page - 1)]
    return rows + [(2 * page, 3 * page + i) for i in range(TILE_ROWS + 2)] + [(5, 6)]


def ragged(rows: int, tiled: bool) -> Lengths:
    """Up to 4,352 tokens with the newest, the longest first, of many rows most up to 600; every third shares a prompt
    of 1,000, if any may.
    """
    g = torch.Generator().manual_seed(rows)
    before = [4351, 999, 1000, 0, 62, 63, 64, 65, *torch.randint(0, 4352, (56,), generator=g).tolist()]
    before += torch.randint(0, 600, (rows,), generator=g).tolist()
    sharing = range(0, rows, 3) if tiled else range(0)
    return [(1000, n if n >= 1000 else 1000 + n) if i in sharing else (0, n) for i, n in enumerate(before[:rows])]


class Context:
    """Rows with contexts of their own and shared ones on random pages; unused memory is NaN."""

    def __init__(
        self, lengths: Lengths, kv: int, group: int, p: int, page: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        g = torch.Generator().manual_seed(kv * p)
        b = len(lengths)
        shares = {shared: -(-shared // page) for shared, _ in lengths if shared}
        own = [-(-(before - shared + 1) // page) for shared, before in lengths]
        size, pages, per = b + 3, sum(shares.values()) + sum(own) + 8, max(own) + max(shares.values(), default=0)
        order = torch.randperm(pages, generator=g)
        slots = torch.randperm(size, generator=g)[:b]
        self.position, self.in_front = torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64)
        table = torch.zeros(size, per, dtype=torch.int32)
        self.k, self.v = (torch.full((pages, kv, page, p), NAN, dtype=dtype) for _ in range(2))

        def take(count: int, tokens: int) -> Tensor:
            """As many pages, with so many tokens in them."""
            nonlocal order
            taken, order = order[:count], order[count:]
            at = torch.arange(tokens)
            for pool in (self.k, self.v):
                pool[taken[at // page], :, at % page] = torch.randn(tokens, kv, p, generator=g).to(dtype)
            return taken

        front = {shared: take(count, shared) for shared, count in shares.items()}
        for (shared, before), count, slot in zip(lengths, own, slots.tolist(), strict=True):
            self.position[slot], self.in_front[slot] = before, shared
            mine = torch.cat((front[shared] if shared else order[:0], take(count, before - shared)))
            table[slot, : len(mine)] = mine
        self.qkv = torch.randn(b, (group + 2) * kv * p, generator=g).to(device, dtype)
        angles = torch.arange(int(self.position.max()) + 1)[:, None] * torch.rand(p // 2, generator=g)
        self.k, self.v = self.k.to(device), self.v.to(device)
        moved = (self.position, self.in_front, table, angles.cos(), angles.sin())
        self.rows = KVRows(slots.to(device, torch.int32), *(t.to(device).contiguous() for t in moved))
        members = {n: [i for i, (shared, _) in enumerate(lengths) if shared == n] for n in shares}
        tiles = [m[i : i + TILE_ROWS] for m in members.values() for i in range(0, len(m), TILE_ROWS)] + [[]]
        self.tiles = torch.tensor([t + [-1] * (TILE_ROWS - len(t)) for t in tiles], dtype=torch.int32, device=device)
        self.norms = [(1 + 0.1 * torch.randn(p, generator=g)).to(device, dtype) for _ in range(2)]

    def plan(self, splits: int, prompt_splits: int, tiled: bool, heads: int, p: int) -> SplitPlan:
        count = self.qkv.shape[0] * (splits + prompt_splits)
        parts = torch.full((count, heads, p), NAN, device=self.qkv.device)
        return SplitPlan(splits, prompt_splits, self.tiles if tiled else None, parts, parts[:, :, 0].contiguous())


def attended(
    context: Context, splits: int, prompt_splits: int, tiled: bool, dtype: torch.dtype, norm: bool, device: torch.device
) -> None:
    """What comes out, and what is written, as the reference has it."""
    kv, p = context.k.shape[1], context.k.shape[3]
    heads = context.qkv.shape[1] // p - 2 * kv
    found, caches = [], []
    for run in (attend, attend_reference):
        layer = KVLayer(context.k.clone(), context.v.clone(), *(context.norms if norm else ()))
        out = torch.full((context.qkv.shape[0], heads * p), NAN, dtype=dtype, device=device)
        plan = context.plan(splits, prompt_splits, tiled, heads, p)
        run(context.qkv, layer, context.rows, plan, out, p**-0.5, 1e-5)
        found.append(out)
        caches.append(torch.stack((layer.k, layer.v)).nan_to_num(7.0))
    close(found[0], found[1], tolerance(dtype))
    # A page a line, by layer of keys and values.
    close(caches[0].flatten(0, 1), caches[1].flatten(0, 1), tolerance(dtype))


@pytest.mark.parametrize(("kv", "group", "p", "page", "splits", "tiled", "dtype", "norm"), ATTENTION)
def test_attention(
    kv: int,
    group: int,
    p: int,
    page: int,
    splits: int,
    tiled: bool,
    dtype: torch.dtype,
    norm: bool,
    device: torch.device,
) -> None:
    attended(Context(few(page), kv, group, p, page, dtype, device), splits, 2, tiled, dtype, norm, device)


@pytest.mark.parametrize(("rows", "kv", "group", "p", "splits", "prompt_splits", "tiled"), LONG)
def test_attention_over_long_contexts_without_norms(
    rows: int, kv: int, group: int, p: int, splits: int, prompt_splits: int, tiled: bool, device: torch.device
) -> None:
    """As Llama's, in bf16 on a GPU, on pages of the engine's size, in as many shares as the step has for as many rows:
    of short rows most shares are empty.
    """
    dtype = BF16 if ON_GPU else F32
    context = Context(ragged(rows, tiled), kv, group, p, PAGE, dtype, device)
    attended(context, splits, prompt_splits, tiled, dtype, False, device)
