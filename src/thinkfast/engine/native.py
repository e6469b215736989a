"""The decode step through decode.c: one call from tokens to logits, one from logits to tokens.

A step of a small model at 64 rows is as much dispatch as arithmetic, and one of a larger model reads its weights. So
the whole step is one function over packed matrices (kernels.cpu). Decoder.step with engine.attend, and
sampler.draw, are its reference and take over where there is no compiler, and for what it does not serve.

Legend: B rows, D model width, V vocabulary, L positions, P head dim, S most pages of a row, F feed-forward width.

Usage: ``NativeStep(native_library(model.spec, PAGE, dtype, device), model, cache.memory, max_len, max_rows)``.
Source: online softmax, arXiv 1805.02867; split in panels after Goto and van de Geijn (2008).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thinkfast.engine.pages import Ints, PageTable
from thinkfast.engine.rng import uniform
from thinkfast.engine.sampler import Draw, RowParams
from thinkfast.kernels.cpu.build import Sizes, awaits_compiler, load_library
from thinkfast.kernels.cpu.native import CDraw, CLayer, CMatrix, CStep, Packed, pack, pack_gated, trim
from thinkfast.models.attention import Attention
from thinkfast.models.decoder import Block, Decoder
from thinkfast.models.spec import ModelSpec


def native_library(spec: ModelSpec, page: int, dtype: torch.dtype, device: torch.device) -> ctypes.CDLL | None:
    """The compiled step for this model, or None where torch has to do it."""
    sizes = _sizes(spec, page, dtype, device)
    return None if sizes is None else load_library(sizes)


def compiles_first(model: Decoder, page: int) -> bool:
    """Whether an engine for ``model`` would have its step compiled, which takes a second or two and is kept."""
    sizes = _sizes(model.spec, page, model.head_weight.dtype, model.head_weight.device)
    return sizes is not None and awaits_compiler(sizes)


def _sizes(spec: ModelSpec, page: int, dtype: torch.dtype, device: torch.device) -> Sizes | None:
    if device.type != "cpu" or dtype != torch.float32:
        return None
    mixer = (spec.ssm_group, spec.d_state, spec.d_conv) if spec.is_student else (1, 1, 2)
    return Sizes(spec.head_dim, page, spec.group, *mixer)


@dataclass(frozen=True, slots=True)
class Spans:
    """Where rows' contexts lie, int64. pages, filled [B, S]: pool indices and tokens in each; count [B] pages of each
    row; tail_len [B] tokens in its tail.
    """

    pages: Tensor
    filled: Tensor
    count: Tensor
    tail_len: Tensor


def make_spans(own: PageTable, shared: PageTable, prompt_of: Ints, filled: Ints, page_tokens: int) -> Spans:
    """The pages of the rows of ``prompt_of`` [B], own ones first, of ``page_tokens`` each; prompts' lie from the back
    of the pool, with ``filled`` tokens each. ``tail_len`` is to be set at each step.
    """
    rows = len(prompt_of)
    own_count, shared_count = own.count[:rows], np.where(prompt_of >= 0, shared.count[prompt_of], 0)
    count = own_count + shared_count
    width = max(int(count.max(initial=0)), 1)
    place = np.arange(width)[None, :]
    where = np.zeros((rows, width), dtype=np.int64)
    # Own pages are full; they are pages because they were.
    tokens = np.full((rows, width), page_tokens, dtype=np.int64)
    row, span = np.nonzero(place < own_count[:, None])
    where[row, span] = own.table[row, span]
    row, span = np.nonzero((place >= own_count[:, None]) & (place < count[:, None]))
    page = shared.table[prompt_of[row], span - own_count[row]]
    where[row, span], tokens[row, span] = len(filled) - 1 - page, filled[page]
    return Spans(*(torch.from_numpy(x) for x in (where, tokens, count, np.zeros(rows, dtype=np.int64))))


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """One layer's part of the cache. Attention: k [pages, K, P, W], v [pages, K, W, P], tail_k, tail_v [rows, K, W, P];
    Mamba: conv [rows, width - 1, C], state [rows, H, N, P].
    """

    tensors: tuple[Tensor, ...]


class NativeStep:
    """``model``'s decode step over a cache of ``memory``, for up to ``max_rows`` rows of ``max_len`` tokens."""

    def __init__(
        self, library: ctypes.CDLL, model: Decoder, memory: list[LayerMemory], max_len: int, max_rows: int
    ) -> None:
        spec, self._columns = model.spec, int(library.columns())
        self.library, self._rows, self._vocab = library, max_rows, spec.vocab_size
        self._kept: list[Tensor | Packed] = []
        self._layers = (CLayer * spec.n_layers)(
            *(self._layer(block, part) for block, part in zip(model.blocks, memory, strict=True))
        )
        table = model.rope(torch.arange(max_len if spec.n_attention else 1))
        inner = spec.n_heads * spec.head_dim
        first = max(inner + 2 * spec.n_kv_heads * spec.head_dim, spec.in_proj_rows if spec.is_student else 0)
        widths = (spec.d_model, max(first, spec.d_ff), inner, spec.vocab_size)
        self._ld = tuple(-(-width // self._columns) * self._columns for width in widths)
        self._threads = 0
        self._buffers: tuple[Tensor, ...] = ()
        self._args = CStep(
            layers=self._layers,
            embed=self._pointer(model.embed.weight),
            norm=self._pointer(model.norm.weight),
            head=self._matrix(pack(model.head_weight, None, self._columns)),
            cos=self._pointer(table.cos.contiguous()),
            sin=self._pointer(table.sin.contiguous()),
            n_layers=spec.n_layers,
            d=spec.d_model,
            heads=spec.n_heads,
            kv_heads=spec.n_kv_heads,
            mixer_heads=spec.ssm_kv_heads,
            scale=spec.head_dim**-0.5,
            eps=spec.norm_eps,
        )
        (self._args.ld_x, self._args.ld_wide, self._args.ld_mid, self._args.ld_logits) = self._ld
        trim()

    def _pointer(self, tensor: Tensor) -> int:
        tensor = tensor.detach().contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _matrix(self, packed: Packed) -> CMatrix:
        self._kept.append(packed)
        return packed.as_c()

    def _layer(self, block: Block, memory: LayerMemory) -> CLayer:
        mixer, n = block.mixer, self._columns
        layer = CLayer(
            input_norm=self._pointer(block.input_norm.weight),
            post_norm=self._pointer(block.post_norm.weight),
            up=self._matrix(pack_gated(block.mlp.gate_up.weight, n)),
            down=self._matrix(pack(block.mlp.down.weight, None, n)),
            out=self._matrix(pack(mixer.out.weight, mixer.out.bias, n)),
        )
        held = [tensor.data_ptr() for tensor in memory.tensors]
        self._kept += memory.tensors
        if isinstance(mixer, Attention):
            layer.into = self._matrix(pack(mixer.qkv.weight, mixer.qkv.bias, n))
            if mixer.q_norm is not None and mixer.k_norm is not None:
                layer.q_norm, layer.k_norm = self._pointer(mixer.q_norm), self._pointer(mixer.k_norm)
            layer.page_k, layer.page_v, layer.tail_k, layer.tail_v = held
            return layer
        layer.mamba = 1
        layer.into = self._matrix(pack(mixer.in_proj.weight, mixer.in_proj.bias, n))
        layer.taps, layer.conv_bias = self._pointer(mixer.conv_weight.t()), self._pointer(mixer.conv_bias)
        layer.dt_bias, layer.skip = self._pointer(mixer.dt_bias), self._pointer(mixer.D)
        layer.rates, layer.gate_norm = self._pointer(-mixer.A_log.exp()), self._pointer(mixer.norm_weight)
        layer.conv, layer.state = held
        return layer

    def _fit(self, threads: int) -> None:
        """Cut buffers; `normed` once a thread, and all zero behind a row's end, where whole panels are read."""
        x, wide, mid, logits = (torch.zeros(self._rows, n) for n in self._ld)
        normed = torch.zeros(threads * self._rows, self._ld[0])
        self._buffers, self._threads, args = (x, wide, mid, logits, normed), threads, self._args
        args.x, args.wide, args.mid, args.logits, args.normed = (t.data_ptr() for t in self._buffers)
        args.threads = threads

    def hidden(self, rows: int) -> Tensor:
        """[rows, D] the hidden states behind the latest logits, valid until the next call."""
        return self._buffers[4][:rows, : self._args.d]

    def __call__(self, tokens: Tensor, positions: Tensor, spans: Spans | None) -> Tensor:
        """tokens [B], positions [B] to logits [B, V], valid until the next call."""
        if (threads := torch.get_num_threads()) != self._threads:
            self._fit(threads)
        args, rows = self._args, tokens.shape[0]
        args.rows, args.tokens, args.positions = rows, tokens.data_ptr(), positions.data_ptr()
        if spans is not None:
            args.max_spans = spans.pages.shape[1]
            args.pages, args.filled = spans.pages.data_ptr(), spans.filled.data_ptr()
            args.spans, args.tail_len = spans.count.data_ptr(), spans.tail_len.data_ptr()
        self.library.step(ctypes.byref(args))
        return self._buffers[3][:rows, : self._vocab]


def native_draw(library: ctypes.CDLL, logits: Tensor, params: RowParams) -> Draw:
    """sampler.draw for rows without filters: logits [B, V], each row's values side by side."""
    rows, uniforms = logits.shape[0], uniform(params.key, params.drawn)
    floats, finite = torch.empty(2, rows), torch.empty(rows, dtype=torch.bool)
    drawn = Draw(torch.empty(rows, dtype=torch.int64), floats[0], finite, floats[1])
    args = CDraw(
        logits=logits.data_ptr(),
        inverse_temperature=params.inverse_temperature.data_ptr(),
        uniform=uniforms.data_ptr(),
        greedy=params.greedy.data_ptr(),
        tokens=drawn.tokens.data_ptr(),
        logprobs=drawn.logprobs.data_ptr(),
        finite=drawn.finite.data_ptr(),
        certainty=drawn.certainty.data_ptr(),
        rows=rows,
        stride=logits.stride(0),
        vocabulary=logits.shape[1],
        threads=torch.get_num_threads(),
    )
    library.draw(ctypes.byref(args))
    return drawn
