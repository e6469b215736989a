"""What chains carry on the GPU, by slot, and how a prefill and a fork write it.

Legend: S slots, A attention layers, M Mamba layers, W tokens a page, T prompt tokens, n prompts, H heads,
K key-value heads, P head dim, N state, D inputs held.

Usage: ``state = State(model, slots=66, per_row=10, pages=640, ssm_dtype=torch.bfloat16)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thinkfast.engine.cache import PAGE
from thinkfast.engine.cuda.book import Entry
from thinkfast.engine.rows import RowStart
from thinkfast.kernels.triton.mixer import HOLD, MixerState
from thinkfast.models.attention import KVState
from thinkfast.models.decoder import Decoder

_INTS = ("position", "drawn", "limit", "key", "top_k", "stop", "shared")
_SMALL = ("token", "alive", "greedy", "watch_eos")
_FLOATS = ("inverse_temperature", "top_p", "min_p")


def _lines(pool: Tensor) -> Tensor:
    """``pool`` [S, ...] in whole numbers, the widest that fit: fp8 cannot be indexed, and bytes copy slowly."""
    lines = pool.flatten(1)
    return lines.view(torch.int64 if lines.shape[1] * lines.element_size() % 8 == 0 else torch.uint8)


@dataclass(frozen=True, slots=True)
class Places:
    """The page of each token [T], and its place there. before: tokens of the one prompt that goes on, in whole pages,
    ``behind`` [before / W].
    """

    page: Tensor
    place: Tensor
    before: int
    behind: Tensor


class State:
    """Pools for ``slots`` slots of at most ``per_row`` pages each; the last slot is the one that fills up batches."""

    def __init__(self, model: Decoder, slots: int, per_row: int, pages: int, ssm_dtype: torch.dtype) -> None:
        spec, weight = model.spec, model.head_weight
        self.spec, self.device, self.ssm_dtype = spec, weight.device, ssm_dtype
        dev = weight.device
        self.ints = torch.zeros(len(_INTS), slots, dtype=torch.int64, device=dev)
        self.small = torch.zeros(len(_SMALL), slots, dtype=torch.int32, device=dev)
        self.floats = torch.ones(len(_FLOATS), slots, dtype=torch.float32, device=dev)
        self.ints[_INTS.index("drawn"), -1] = 1
        self.table = torch.zeros(slots, max(per_row, 1), dtype=torch.int32, device=dev)
        # One page more than the book gives away: the dummy slot's.
        kv = (spec.n_attention, pages + 1, spec.n_kv_heads, PAGE, spec.head_dim)
        self.k, self.v = (torch.zeros(kv, dtype=weight.dtype, device=dev) for _ in range(2))
        self.table[-1] = pages
        self.mixers: list[MixerState] = []
        for _ in range(spec.n_layers - spec.n_attention):
            heads, p, n = spec.n_heads, spec.head_dim, spec.d_state
            held = (slots, HOLD, spec.ssm_kv_heads * (p + n))
            ssm = torch.zeros(slots, heads, p, n, dtype=ssm_dtype, device=dev)
            conv = torch.zeros(slots, spec.d_conv, spec.conv_channels, dtype=weight.dtype, device=dev)
            steps = torch.zeros(slots, HOLD, heads, device=dev)
            scale = torch.ones(slots, heads, device=dev)
            self.mixers.append(MixerState(ssm, scale, conv, torch.zeros(held, dtype=weight.dtype, device=dev), steps))

    def __getattr__(self, name: str) -> Tensor:
        for names, table in ((_INTS, "ints"), (_SMALL, "small"), (_FLOATS, "floats")):
            if name in names:
                column: Tensor = self.__dict__[table][names.index(name)]
                return column
        raise AttributeError(name)

    def send(self, values: np.ndarray) -> Tensor:
        """Host numbers to the device without waiting for it."""
        host = torch.from_numpy(np.ascontiguousarray(values))
        return host.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else host

    def places(self, pages: Sequence[Sequence[int]], lens: Sequence[int], before: int = 0) -> Places:
        """Where the keys and values of a packed prefill of n prompts go, or of one behind ``before`` tokens; nowhere
        where no layer has any.
        """
        if not self.spec.n_attention:
            nothing = torch.empty(0, dtype=torch.int64, device=self.device)
            return Places(nothing, nothing, before, nothing)
        at = [np.arange(before, before + n) for n in lens]
        where = [np.asarray(own)[t // PAGE] for own, t in zip(pages, at, strict=True)]
        behind = np.asarray(pages[0][: before // PAGE], dtype=np.int64)
        place = np.concatenate(at) % PAGE
        return Places(self.send(np.concatenate(where)), self.send(place), before, self.send(behind))

    def keep(self, layer: int, places: Places, kept: KVState) -> None:
        """Write keys and values of one attention layer to their pages."""
        self.k[layer][places.page, :, places.place] = kept.k.to(self.k.dtype)
        self.v[layer][places.page, :, places.place] = kept.v.to(self.v.dtype)

    def read(self, layer: int, places: Places) -> KVState | None:
        """Keys and values in one attention layer of the tokens before; None where there are none."""
        if not places.before:
            return None
        return KVState(*(pool[layer][places.behind].transpose(1, 2).flatten(0, 1) for pool in (self.k, self.v)))

    def enter(self, entries: Sequence[Entry], starts: Sequence[RowStart]) -> Tensor:
        """Write new rows' parameters and pages and copy their prompts' states; returns their slots, int32."""
        slots = self.send(np.array([e.slot for e in entries]))
        params = [s.params for s in starts]
        ints = [
            (s.prompt_tokens - 1, 0, s.limit, s.key, s.params.top_k, s.stop, e.shared)
            for s, e in zip(starts, entries, strict=True)
        ]  # position: the first draw moves it to the token that it draws
        floats = [(1.0 if q.greedy else 1 / q.temperature, q.top_p, q.min_p) for q in params]
        small = [(0, 1, q.greedy, not q.ignore_eos) for q in params]
        self.ints[:, slots] = self.send(np.array(ints, dtype=np.int64).T)
        self.floats[:, slots] = self.send(np.array(floats, dtype=np.float32).T)
        self.small[:, slots] = self.send(np.array(small, dtype=np.int32).T)
        if self.spec.n_attention:
            table = np.zeros((len(entries), self.table.shape[1]), dtype=np.int32)
            for line, entry in zip(table, entries, strict=True):
                line[: len(entry.pages)] = entry.pages
            self.table[slots] = self.send(table)
        copies = [(e.source, e.slot) for e in entries if e.source is not None]
        if copies and self.mixers:
            index = self.send(np.array(copies).T)
            for mixer in self.mixers:
                for part in map(_lines, (mixer.ssm, mixer.scale, mixer.conv)):
                    part[index[1]] = part[index[0]]
        return slots.to(torch.int32)
