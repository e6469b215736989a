"""The decode step on a GPU, from token to token: what a graph captures, for every mixer.

Matrix products go to cuBLAS (products.py), those of few rows to kernels/triton/product.py and a feed-forward block's
first of many to gated.py; everything between two of them is one kernel. All of it runs in buffers that stay where they
are, because a graph replays addresses.

Legend: B rows, D model width, F feed-forward width, V vocabulary.

Usage: ``step = Step(model, state, rows=512, max_len=1024); step(rows=64, active=..., tiles=None, filters=False)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thinkfast.engine.cuda.folding import Folded, folded
from thinkfast.engine.cuda.products import Products
from thinkfast.engine.cuda.state import State
from thinkfast.errors import ModelError
from thinkfast.kernels.cuda.mixer import fused
from thinkfast.kernels.triton.attention import KVLayer, KVRows, SplitPlan, attend
from thinkfast.kernels.triton.gated import gated, serves
from thinkfast.kernels.triton.mixer import MixerLayer, MixerRows, MixerWork, Undivided, mix
from thinkfast.kernels.triton.norm import add_norm, embed_norm, inverse_rms
from thinkfast.kernels.triton.product import MOST_ROWS, SHARES, Cut, Cuts, can_cut, cuts, product
from thinkfast.kernels.triton.rounding import round_rows
from thinkfast.kernels.triton.sampler import NEWS, SampleRows, SampleWork, draw, parts, scan
from thinkfast.kernels.triton.swiglu import swiglu
from thinkfast.models.attention import Attention
from thinkfast.models.decoder import Block, Decoder
from thinkfast.models.fp8 import ALIGNED, FP8, Fp8Linear, is_fp8
from thinkfast.models.mixers import Mamba
from thinkfast.models.sources.cache import cache_place

# Programs that fill the chip, and most shares that a row's context is cut into.
_PROGRAMS, _MAX_SPLITS = 1056, 16
_PROMPT_SPLITS = 4
# Steps whose news the host may not have read yet, a power of two: the last, and the one before until the last has been
# launched.
RING = 4


def splits(rows: int, kv_heads: int) -> int:
    """Shares of a row's context: enough programs for the whole chip and no more, since shares have to be merged."""
    return max(1, min(_MAX_SPLITS, _PROGRAMS // (rows * kv_heads)))


def _scales(linear: nn.Linear | Fp8Linear, scale: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Those of the rows and of the weight, where they are in eight bits."""
    return (scale, linear.scale) if isinstance(linear, Fp8Linear) and scale is not None else None


@dataclass(frozen=True, slots=True)
class _Layer:
    """``number`` among layers of its kind."""

    block: Block
    kv: KVLayer | None
    mixer: MixerLayer | None
    number: int
    folded: Folded


def mixer_layer(mixer: Mamba) -> MixerLayer:
    """The small weights of a mixer, prepared."""
    f = torch.float32
    taps = mixer.conv_weight.t().to(f).contiguous()
    return MixerLayer(
        taps, mixer.conv_bias.to(f), -mixer.A_log.to(f).exp(), mixer.dt_bias.to(f), mixer.D.to(f),
        mixer.norm_weight.to(f), mixer.kv_heads, mixer.norm_eps,
    )  # fmt: skip


class Step:
    """``model``'s decode step over ``state`` for up to ``rows`` rows; ``room``: bytes for weights of steps of many rows
    (folding.py).
    """

    def __init__(self, model: Decoder, state: State, rows: int, max_len: int, room: int = 0) -> None:
        spec, weight = model.spec, model.head_weight
        self.model, self.state, self.spec = model, state, spec
        dev = weight.device

        def buffer(width: int) -> Tensor:
            return torch.zeros(rows, width, dtype=weight.dtype, device=dev)

        self.products = Products(dev, cache_place("products.json"))
        heads = spec.n_heads * spec.head_dim
        wide = max((spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim, spec.in_proj_rows if spec.is_student else 0)
        self.residual, self.normed, self.update = buffer(spec.d_model), buffer(spec.d_model), buffer(spec.d_model)
        # In eight bits the next product's input has one buffer for all widths, and one for the rows' scales.
        fp8 = is_fp8(model)
        if fp8 and (spec.d_model % ALIGNED or heads % ALIGNED or spec.d_ff % ALIGNED):
            raise ModelError(
                f"widths {spec.d_model}, {heads} and {spec.d_ff} are not all multiples of {ALIGNED}, which products in "
                "eight bits need",
                remedy="leave fp8_weights out",
            )
        self.rounded = torch.zeros(rows * max(spec.d_model, heads, spec.d_ff) if fp8 else 0, dtype=FP8, device=dev)
        self.scale = torch.zeros(rows, 1, device=dev) if fp8 else None
        # Flat, because layers of both kinds cut it to their own width.
        self.projected = torch.zeros(rows * wide, dtype=weight.dtype, device=dev)
        self.mixed, self.both, self.inner = buffer(heads), buffer(2 * spec.d_ff), buffer(spec.d_ff)
        self.logits = buffer(spec.vocab_size)
        # A step writes its news where the host reads them: copying them between two steps takes 10 us.
        self.turn = torch.zeros(1, dtype=torch.int32, device=dev)
        self.ring = torch.zeros(RING, NEWS, rows, dtype=torch.int32, pin_memory=dev.type == "cuda")
        self.news = torch.zeros(NEWS, rows, dtype=torch.int32, device=dev)
        self.work = SampleWork.make(rows, spec.vocab_size, dev)
        self.mixing = MixerWork.make(rows, spec.n_heads, spec.head_dim, spec.d_state, weight.dtype, dev)
        worst = rows * (splits(rows, spec.n_kv_heads) + _PROMPT_SPLITS)
        worst = max(worst, _PROGRAMS // spec.n_kv_heads + 2 * _PROMPT_SPLITS * rows) if spec.n_attention else 0
        self.parts = torch.zeros(worst, spec.n_heads, spec.head_dim, device=dev)
        self.peaks = torch.zeros(worst, spec.n_heads, device=dev)
        at = torch.arange(max_len if spec.n_attention else 1, device=dev, dtype=torch.float32)
        angles = at[:, None] * model.frequencies.to(dev)
        self.cos, self.sin = angles.cos().contiguous(), angles.sin().contiguous()
        self._cutting = can_cut(weight, spec.d_model, heads, spec.d_ff)
        self.inverse = torch.zeros(rows, device=dev)
        # Shares of an update, of as many rows as are ever cut so.
        self.shares = torch.zeros(SHARES * min(rows, MOST_ROWS) * spec.d_model if self._cutting else 0, device=dev)
        self.layers: list[_Layer] = []
        attention = mamba = 0
        for block, copies in zip(model.blocks, folded(model, room), strict=True):
            if isinstance(block.mixer, Attention):
                m = block.mixer
                own = KVLayer(state.k[attention], state.v[attention], m.q_norm, m.k_norm)
                self.layers.append(_Layer(block, own, None, attention, copies))
                attention += 1
            else:
                self.layers.append(_Layer(block, None, mixer_layer(block.mixer), mamba, copies))
                mamba += 1

    @property
    def mixers(self) -> list[MixerLayer]:
        """The mixers' prepared weights, in order."""
        return [layer.mixer for layer in self.layers if layer.mixer is not None]

    def sample_rows(self, active: Tensor) -> SampleRows:
        """The sampler's view of the slots ``active``."""
        s = self.state
        return SampleRows(
            active, s.token, s.alive, s.position, s.drawn, s.limit, s.key, s.top_k, s.stop,
            s.inverse_temperature, s.top_p, s.min_p, s.greedy, s.watch_eos,
        )  # fmt: skip

    def __call__(self, active: Tensor, tiles: Tensor | None, filters: bool, eos: Tensor, stops: Tensor) -> None:
        """One token for every row of ``active`` [B]; ``turn`` is one more; that of ``ring`` says what came of it."""
        b, s, spec = active.shape[0], self.state, self.spec
        residual, scale = self.residual[:b], None if self.scale is None else self.scale[:b]
        mixed, both, logits = self.mixed[:b], self.both[:b], self.logits[:b]
        # What goes into a product: in eight bits three views of one buffer, each read before the next is written.
        normed, given, inner = (
            (self.normed[:b], mixed, self.inner[:b])
            if scale is None
            else (self._rounded(b, width) for width in (spec.d_model, mixed.shape[1], spec.d_ff))
        )
        plan = SplitPlan(splits(b, spec.n_kv_heads), _PROMPT_SPLITS if b < 256 else 1, tiles, self.parts, self.peaks)
        kv_rows = KVRows(active, s.position, s.shared, s.table, self.cos, self.sin)
        mixer_rows = MixerRows(active, s.position, s.drawn, s.key)
        eps, cut = spec.norm_eps, cuts(b) if self._cutting else Cuts()
        at_once = scale is None and serves(b, self.layers[0].block.mlp.gate_up.weight)
        update = self.update if cut.out is None else self.shares
        exact, first = self.normed[:b], self.layers[0].block.input_norm.weight
        embed_norm(self.model.embed.weight, s.token, active, first, residual, exact, eps, self.turn)
        if scale is not None:
            round_rows(exact, normed, scale)
        inverse, norms = self.inverse[:b], [*(layer.block.input_norm.weight for layer in self.layers[1:]), None]
        # By layer, weights for rows without a norm; own products, of few rows, begin before the residual is there.
        without = [layer.folded if b > MOST_ROWS else Folded() for layer in self.layers]
        for layer, copies, after, norm in zip(self.layers, without, [*without[1:], Folded()], norms, strict=True):
            block, mixer = layer.block, layer.block.mixer
            if isinstance(mixer, Attention) and layer.kv is not None:
                qkv = self._project(mixer.qkv, normed, scale, self.projected, cut.into)
                attend(qkv, layer.kv, kv_rows, plan, mixed, mixer.scale, mixer.norm_eps)
            elif isinstance(mixer, Mamba) and layer.mixer is not None:
                if (into := copies.into) is not None:
                    projected, undivided = self._project(into, residual, None, self.projected), Undivided(residual, eps)
                else:
                    projected, undivided = self._project(mixer.in_proj, normed, scale, self.projected, cut.into), None
                own = s.mixers[layer.number]
                if (at_one := fused(projected, layer.mixer, own, undivided)) is not None:
                    at_one(mixer_rows, mixed, layer.number)
                else:
                    mix(projected, layer.mixer, own, mixer_rows, self.mixing, mixed, layer.number, undivided=undivided)
            if scale is not None:
                round_rows(mixed, given, scale)
            gate_up = block.mlp.gate_up
            if copies.gate_up is not None and at_once:
                self.products(given, mixer.out.weight, residual, add=True)
                inverse_rms(residual, inverse, eps)
                gated(residual, copies.gate_up, inner, inverse=inverse)
            else:
                added = self._project(mixer.out, given, scale, update, cut.out)
                add_norm(residual, added, block.post_norm.weight, normed, eps, scale)
                if cut.gate_up is not None:
                    whole = self.inner[:b]
                    product(normed, gate_up.weight, whole, cut.gate_up, gated=True, scales=_scales(gate_up, scale))
                    if scale is not None:
                        round_rows(whole, inner, scale)
                elif at_once:
                    gated(normed, gate_up.weight, inner)
                else:
                    swiglu(self._project(gate_up, normed, scale, both), inner, scale)
            if after.into is not None:
                self.products(inner, block.mlp.down.weight, residual, add=True)
                continue
            down = self._project(block.mlp.down, inner, scale, update, cut.down)
            if norm is not None:
                add_norm(residual, down, norm, normed, eps, scale)
        # The head stays as it is.
        add_norm(residual, down, self.model.norm.weight, exact, eps)
        head, rows = self.model.head_weight, self.sample_rows(active)
        if cut.head is not None:
            product(exact, head, logits, cut.head)
            scan(logits, rows, self.work)
        else:
            for start, end in parts(b, spec.vocab_size, logits.element_size()):
                self.products(exact, head[start:end], logits[:, start:end])
                scan(logits, rows, self.work, start, end)
        draw(logits, rows, eos, stops, self.work, self.ring, filters, self.turn)

    def _project(
        self, linear: nn.Linear | Fp8Linear, x: Tensor, scale: Tensor | None, out: Tensor, cut: Cut | None = None
    ) -> Tensor:
        """x [B, K] to [B, N], or with a ``cut`` to [R, B, N], at the beginning of ``out``, which has room for it;
        cuBLAS's in eight bits, which take the rows' ``scale``, in the graph's own memory.
        """
        bias: Tensor | None = linear.bias
        shape: tuple[int, ...] = (x.shape[0], linear.out_features)
        if cut is not None and cut.shares > 1:
            shape = (cut.shares, *shape)
        out = out.view(-1)[: math.prod(shape)].view(shape)
        scales = _scales(linear, scale)
        if cut is not None:
            product(x, linear.weight, out, cut, bias, scales=scales)
            return out
        if isinstance(linear, Fp8Linear) and scales is not None:
            return linear.product(x, scales[0], out.dtype)[:, : linear.out_features]
        if bias is not None:
            return torch.addmm(bias, x, linear.weight.t(), out=out)
        self.products(x, linear.weight, out)
        return out

    def _rounded(self, rows: int, width: int) -> Tensor:
        return self.rounded[: rows * width].view(rows, width)
