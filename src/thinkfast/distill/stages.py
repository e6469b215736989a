"""The stages of MOHAWK (arXiv 2408.10189) and what surrounds them: orient, align, imitate, sft, and pretrain.

Legend: T total tokens, D model width, H heads, L length, M masked tokens.

A stage says which parameters it trains, what its loss is on a batch, and what its held-out figure is. Orient matches
materialised mixer matrices (Frobenius), align feeds every block the teacher's hidden state and matches mixer output
and block output, imitate matches next-token distributions end to end, sft fits the written chains.

Usage: ``stage = make_stage(config, student, teacher); stage.loss(batch).backward()``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from thinkfast.data.corpus import Batch
from thinkfast.distill.losses import divergence, matrix_error, relative_error
from thinkfast.distill.recipe import StageConfig
from thinkfast.errors import ConfigError
from thinkfast.models.attention import Attention
from thinkfast.models.decoder import Decoder
from thinkfast.models.mixers import Mamba
from thinkfast.models.ragged import Ragged


class Stage(Protocol):
    """One stage over one student."""

    config: StageConfig
    higher_is_better: bool
    figure: str

    def parameters(self) -> list[nn.Parameter]:
        """What the stage trains."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """Scalar training loss of a batch."""
        ...

    def count(self, batch: Batch) -> int:
        """How many tokens the loss is a mean over: the weight of a batch among others."""
        ...

    def measure(self, batch: Batch) -> float:
        """The held-out figure on one batch."""
        ...


def mamba_layers(student: Decoder) -> list[tuple[int, Mamba]]:
    """Index and mixer of every Mamba layer."""
    return [(i, b.mixer) for i, b in enumerate(student.blocks) if isinstance(b.mixer, Mamba)]


def trainable(config: StageConfig, student: Decoder) -> list[nn.Parameter]:
    """What ``config.train`` names. Errors: ConfigError where that is nothing."""
    if config.train == "all":
        return list(student.parameters())
    layers = mamba_layers(student)
    if not layers:
        raise ConfigError(
            f"stage {config.name}: there is no mixer to train", remedy=f"set train: all for {config.name}"
        )
    return [p for _, mixer in layers for p in mixer.parameters()]


def _draw(batch: Batch, size: int, count: int) -> Tensor:
    """``count`` different indices below ``size``, drawn from the batch itself: a resumed run draws the same."""
    generator = torch.Generator().manual_seed(int(batch.tokens[:64].sum()) + batch.tokens.numel())
    return torch.randperm(size, generator=generator)[:count].sort().values.to(batch.tokens.device)


class _Distill:
    """What the stages share: student, frozen teacher, trainable set."""

    higher_is_better = False
    figure = "error"

    def __init__(self, config: StageConfig, student: Decoder, teacher: Decoder) -> None:
        self.config, self.student, self.teacher = config, student, teacher

    def parameters(self) -> list[nn.Parameter]:
        return trainable(self.config, self.student)

    def count(self, batch: Batch) -> int:
        return batch.tokens.numel()


class Orient(_Distill):
    """Frobenius distance between the student's mixing matrices and the teacher's softmax matrices, per layer.

    Rows are compared as directions: the per-head norm behind the mixer removes a row's length, so matching it would
    spend the stage on what the output cannot show. Of each matrix a fixed number of rows is drawn per batch: an
    unbiased estimate of the whole, and the L x L matrices of all layers are never held.
    """

    figure = "matrix error"
    rows = 48

    def parameters(self) -> list[nn.Parameter]:
        names = ("in_proj.weight", "in_proj.bias", "conv_weight", "conv_bias", "dt_bias", "A_log", "D")
        return [p for _, m in mamba_layers(self.student) for name, p in m.named_parameters() if name in names]

    def loss(self, batch: Batch) -> Tensor:
        ragged = Ragged(batch.lens)
        layers = dict(mamba_layers(self.student))
        rows = _draw(batch, ragged.max_len, self.rows)
        terms: list[Tensor] = []
        with torch.no_grad():
            x, rope = self.teacher.embed(batch.tokens), self.teacher.rope(ragged.positions)
        for i, block in enumerate(self.teacher.blocks):
            if i in layers and isinstance(block.mixer, Attention):
                with torch.no_grad():
                    u = block.input_norm(x)
                    target = block.mixer.matrix(u, ragged, rope, rows)
                terms.append(matrix_error(layers[i].matrix(u, ragged, rows), target))
            if len(terms) == len(layers):
                break
            with torch.no_grad():
                x = block(x, ragged, rope)
        return torch.stack(terms).mean()

    @torch.no_grad()
    def measure(self, batch: Batch) -> float:
        return self.loss(batch).item()


class Align(_Distill):
    """Each block is fed the teacher's hidden state; its mixer's output and its own output are matched.

    The mixer's term alone is more direct, the block's term knows what the MLP makes of an error; both together were
    worth 5-6 points of GSM8K over the block's alone (FACTS.md, section 4). Errors are relative to what the teacher's
    mixer, or block, adds to the residual stream. An MLP sees one token at a time, so the block's term is estimated on
    a random share of the tokens at that share of its cost.
    """

    figure = "layer error"
    share = 4

    def terms(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Relative errors of mixer output and of block output, each [Mamba layers]."""
        ragged = Ragged(batch.lens)
        picked = _draw(batch, batch.tokens.numel(), -(-batch.tokens.numel() // self.share))
        mixer_terms: list[Tensor] = []
        block_terms: list[Tensor] = []
        with torch.no_grad():
            x, rope = self.teacher.embed(batch.tokens), self.teacher.rope(ragged.positions)
        for theirs, ours in zip(self.teacher.blocks, self.student.blocks, strict=True):
            with torch.no_grad():
                mixed = theirs.mix(theirs.input_norm(x), ragged, rope)
                after = theirs.feed_forward(x + mixed)
            if isinstance(ours.mixer, Mamba):
                own = ours.mix(ours.input_norm(x), ragged, rope)
                mixer_terms.append(relative_error(own, mixed))
                start = x[picked]
                block_terms.append(
                    relative_error(ours.feed_forward(start + own[picked]) - start, after[picked] - start)
                )
            x = after
        return torch.stack(mixer_terms), torch.stack(block_terms)

    def loss(self, batch: Batch) -> Tensor:
        mixer, block = self.terms(batch)
        return mixer.mean() + block.mean()

    @torch.no_grad()
    def measure(self, batch: Batch) -> float:
        return self.terms(batch)[0].mean().item()


class Imitate(_Distill):
    """KL between next-token distributions over the answer's tokens, forward or reverse (or JSD).

    With ``hidden`` in its config, the student's residual stream is also drawn to the teacher's after every block,
    now end to end on the student's own activations: a denser signal where the stage is short.
    """

    higher_is_better = True
    figure = "next-token agreement"

    def count(self, batch: Batch) -> int:
        return int(batch.loss_mask.sum())

    def loss(self, batch: Batch) -> Tensor:
        ragged = Ragged(batch.lens)
        keep = self.config.hidden > 0
        with torch.no_grad():
            target, theirs = self.teacher.trace(batch.tokens, ragged, keep)
        hidden, ours = self.student.trace(batch.tokens, ragged, keep)
        mask = batch.loss_mask
        loss = divergence(
            self.config.loss,
            hidden[mask],
            self.student.head_weight,
            teacher=(target[mask], self.teacher.head_weight),
        )
        if keep:
            errors = [relative_error(a, b) for a, b in zip(ours, theirs, strict=True)]
            loss = loss + self.config.hidden * torch.stack(errors).mean()
        return loss

    @torch.no_grad()
    def measure(self, batch: Batch) -> float:
        ragged = Ragged(batch.lens)
        theirs, ours = (
            m.logits(m(batch.tokens, ragged)[batch.loss_mask]).argmax(-1) for m in (self.teacher, self.student)
        )
        return (theirs == ours).float().mean().item()


class FineTune:
    """Cross-entropy on the written chains: ``sft`` for a student, ``pretrain`` for a teacher made from nothing."""

    higher_is_better = True
    figure = "greedy accuracy"

    def __init__(self, config: StageConfig, student: Decoder) -> None:
        self.config, self.student = config, student

    def parameters(self) -> list[nn.Parameter]:
        return trainable(self.config, self.student)

    def count(self, batch: Batch) -> int:
        return int(batch.loss_mask.sum())

    def loss(self, batch: Batch) -> Tensor:
        hidden = self.student(batch.tokens, Ragged(batch.lens))[batch.loss_mask]
        targets = batch.tokens.roll(-1)[batch.loss_mask]
        return divergence("ce", hidden, self.student.head_weight, targets=targets)

    @torch.no_grad()
    def measure(self, batch: Batch) -> float:
        hidden = self.student(batch.tokens, Ragged(batch.lens))[batch.loss_mask]
        guess = self.student.logits(hidden).argmax(-1)
        return (guess == batch.tokens.roll(-1)[batch.loss_mask]).float().mean().item()


def make_stage(config: StageConfig, student: Decoder, teacher: Decoder | None) -> Stage:
    """The stage that ``config`` names. Errors: ConfigError where a distillation stage has no teacher."""
    if config.name in ("sft", "pretrain"):
        return FineTune(config, student)
    if teacher is None:
        raise ConfigError(f"stage {config.name!r} needs a teacher", remedy="set teacher: in the recipe")
    kinds: dict[str, Callable[[StageConfig, Decoder, Decoder], Stage]]
    kinds = {"orient": Orient, "align": Align, "imitate": Imitate}
    return kinds[config.name](config, student, teacher)
