"""What each row carries besides its cache: token, position, limits, sampling parameters, and what it has said so far.

Everything stays on the device as columns of a few tensors, so that a step is batched operations on views and a row
moves with one copy per tensor. The host hears one code a row and step, and only reads a row's tokens when it ends.

Legend: B rows, V vocabulary, D model width.

Usage: ``rows.add(starts); rows.accept(first, last, draw)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thinkfast.engine.pages import Moves
from thinkfast.engine.request import SamplingParams
from thinkfast.engine.sampler import Draw, Mix, RowParams, mix_of


class Code(IntEnum):
    """What a step says of a row, the more final the higher."""

    GO_ON = 0
    MAYBE_STOP = 1
    """The token may complete one of the row's stop strings; the host looks at the text."""
    LENGTH = 2
    EOS = 3
    ERROR = 4


@dataclass(frozen=True, slots=True)
class RowStart:
    """A row to be: its random key, sampling parameters, most new tokens, prompt length, and stop table (0 is none)."""

    key: int
    params: SamplingParams
    limit: int
    prompt_tokens: int
    stop: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """What a row has generated: n tokens and their logprobs [n]. certainty: mean over its tokens, see Draw; hidden: see
    Chain; None where the runner does not keep it.
    """

    tokens: tuple[int, ...]
    logprobs: NDArray[np.float32]
    certainty: float | None = None
    hidden: NDArray[np.float32] | None = None


_TOKEN, _POSITION, _DRAWN, _LIMIT, _KEY, _TOP_K, _STOP = range(7)
_INVERSE_TEMPERATURE, _TOP_P, _MIN_P, _CERTAINTY = range(4)
_GREEDY, _WATCH_EOS = range(2)


class Rows:
    """Row state for ``max_rows`` rows of at most ``max_new`` tokens; ``eos`` [V] bool marks end tokens; ``width``: D,
    where the last and the mean hidden state of a row are to be kept, else 0.
    """

    def __init__(self, max_rows: int, max_new: int, eos: Tensor, width: int = 0) -> None:
        device = eos.device
        self._eos = eos
        self._ints = torch.zeros(7, max_rows, dtype=torch.int64, device=device)
        self._floats = torch.zeros(4, max_rows, dtype=torch.float32, device=device)
        self._bools = torch.zeros(2, max_rows, dtype=torch.bool, device=device)
        self._tokens = torch.zeros(max_rows, max_new, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(max_rows, max_new, dtype=torch.float32, device=device)
        self._hidden = torch.zeros(2, max_rows, width, dtype=torch.float32, device=device)  # newest, sum
        self._starts = torch.arange(max_rows, device=device) * max_new
        self._stops = torch.zeros(1, eos.shape[0], dtype=torch.bool, device=device)
        self.count = 0
        self._mix: Mix | None = None
        self._any_stop = False

    @property
    def tokens(self) -> Tensor:
        """[B] each row's newest token."""
        return self._ints[_TOKEN, : self.count]

    @property
    def positions(self) -> Tensor:
        """[B] the position that token stands at."""
        return self._ints[_POSITION, : self.count]

    def add_stop_table(self, table: Tensor) -> int:
        """Register the tokens [V] bool that may complete a stop string; returns the number for RowStart.stop."""
        self._stops = torch.cat((self._stops, table.to(self._stops.device)[None]))
        return self._stops.shape[0] - 1

    def add(self, starts: Sequence[RowStart]) -> range:
        """Append rows; nothing is drawn yet."""
        new = slice(self.count, self.count + len(starts))
        p = [s.params for s in starts]
        ints = [
            (0, s.prompt_tokens - 1, 0, s.limit, s.key, s.params.top_k, s.stop) for s in starts
        ]  # position: accept() moves it to that of the first drawn token
        floats = [(1.0 if q.greedy else 1 / q.temperature, q.top_p, q.min_p, 0.0) for q in p]
        bools = [(q.greedy, not q.ignore_eos) for q in p]
        for table, values in ((self._ints, ints), (self._floats, floats), (self._bools, bools)):
            table[:, new] = torch.tensor(values, dtype=table.dtype).T.to(table.device)
        self._hidden[:, new] = 0
        self.count = new.stop
        self._changed()
        return range(new.start, new.stop)

    def remove(self, left: int, moves: Moves) -> None:
        """Keep ``left`` rows, after row moves.src[i] has become row moves.dst[i]."""
        if len(moves):
            index = torch.from_numpy(np.stack([moves.src, moves.dst])).to(self._ints.device)
            src, dst = index[0], index[1]
            for table in (self._ints, self._floats, self._bools, self._hidden):
                table[:, dst] = table[:, src]
            self._tokens[dst], self._logprobs[dst] = self._tokens[src], self._logprobs[src]
        self.count = left
        self._changed()

    def _changed(self) -> None:
        self._mix = None
        self._any_stop = bool(self._ints[_STOP, : self.count].any())

    def params(self, first: int, last: int) -> RowParams:
        """The sampler's view of rows first .. last - 1."""
        ints, floats = self._ints[:, first:last], self._floats[:, first:last]
        return RowParams(
            key=ints[_KEY],
            drawn=ints[_DRAWN],
            inverse_temperature=floats[_INVERSE_TEMPERATURE],
            top_k=ints[_TOP_K],
            top_p=floats[_TOP_P],
            min_p=floats[_MIN_P],
            greedy=self._bools[_GREEDY, first:last],
        )

    def mix(self) -> Mix:
        """Which sampler paths all rows together need."""
        if self._mix is None:
            self._mix = mix_of(self.params(0, self.count))
        return self._mix

    def accept(self, first: int, last: int, draw: Draw, hidden: Tensor | None = None) -> Tensor:
        """Record one drawn token for rows first .. last - 1, and the ``hidden`` states [last - first, D] that drew it
        where they are kept; returns their codes [last - first] int64.
        """
        if hidden is not None:
            self._hidden[0, first:last].copy_(hidden)
            self._hidden[1, first:last].add_(hidden)
        ints = self._ints[:, first:last]
        place = self._starts[first:last] + ints[_DRAWN]
        self._tokens.view(-1).index_copy_(0, place, draw.tokens)
        self._logprobs.view(-1).index_copy_(0, place, draw.logprobs)
        ints[_TOKEN].copy_(draw.tokens)
        ints[_POSITION : _DRAWN + 1].add_(1)
        self._floats[_CERTAINTY, first:last].add_(draw.certainty)
        code = (ints[_DRAWN] >= ints[_LIMIT]) * int(Code.LENGTH)
        if self._any_stop:
            maybe = self._stops[ints[_STOP], draw.tokens]
            code = torch.maximum(code, maybe * int(Code.MAYBE_STOP))
        ended = self._eos[draw.tokens] & self._bools[_WATCH_EOS, first:last]
        code = torch.where(ended, int(Code.EOS), code)
        return torch.where(draw.finite, code, int(Code.ERROR))

    def said(self, rows: Sequence[int]) -> list[Said]:
        """What ``rows`` have generated so far; reads back from the device."""
        if not rows:
            return []
        index = torch.tensor(rows, device=self._ints.device)
        lens = self._ints[_DRAWN][index].tolist()
        longest = max(lens)
        tokens = self._tokens[index, :longest].tolist()
        logprobs = self._logprobs[index, :longest].cpu().numpy()
        drawn = self._ints[_DRAWN, index].clamp(min=1)
        certainty = (self._floats[_CERTAINTY, index] / drawn).tolist()
        hidden: Sequence[NDArray[np.float32] | None] = [None] * len(rows)
        if self._hidden.shape[2]:
            newest, total = self._hidden[:, index]
            hidden = list(torch.stack((newest, total / drawn[:, None]), 1).cpu().numpy())
        return [
            Said(tuple(t[:n]), p[:n], c, h)
            for t, p, n, c, h in zip(tokens, logprobs, lens, certainty, hidden, strict=True)
        ]
