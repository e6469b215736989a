"""The stages of MOHAWK (arXiv 2408.10189) and what surrounds them: orient, align, imitate, sft, and pretrain.

Legend: T total tokens, D model width, H heads, L length, M masked tokens.

A stage says which parameters it trains, what its loss is on a batch, and what its held-out figure is. Orient matches
materialised mixer matrices (Frobenius), align feeds every block the teacher's hidden state and matches mixer output
and block output, imitate matches next-token distributions end to end, sft fits the written chains.

Usage: ``stage = make_stage(config, student, teacher); loss, figures = stage.loss(batch)``.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from thinkfast.data.corpus import Batch
from thinkfast.distill.losses import divergence, relative_error
from thinkfast.distill.recipe import StageConfig
from thinkfast.errors import ConfigError
from thinkfast.models.attention import Attention
from thinkfast.models.decoder import Decoder
from thinkfast.models.mixers import Mamba
from thinkfast.models.ragged import Ragged

Figures = dict[str, float]


class Stage(Protocol):
    """One stage over one student."""

    config: StageConfig
    higher_is_better: bool
    figure: str

    def parameters(self) -> list[nn.Parameter]:
        """What the stage trains."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """Scalar training loss of a batch; also its held-out figure for orient and align."""
        ...

    def measure(self, batch: Batch) -> float:
        """The held-out figure on one batch."""
        ...


def mamba_layers(student: Decoder) -> list[tuple[int, Mamba]]:
    """Index and mixer of every Mamba layer."""
    return [(i, b.mixer) for i, b in enumerate(student.blocks) if isinstance(b.mixer, Mamba)]


class _Distill:
    """What the stages share: student, frozen teacher, trainable set."""

    higher_is_better = False
    figure = "error"

    def __init__(self, config: StageConfig, student: Decoder, teacher: Decoder) -> None:
        self.config, self.student, self.teacher = config, student, teacher

    def parameters(self) -> list[nn.Parameter]:
        if self.config.train == "all":
            return list(self.student.parameters())
        return [p for _, mixer in mamba_layers(self.student) for p in mixer.parameters()]


class Orient(_Distill):
    """Frobenius distance between the student's mixing matrices and the teacher's softmax matrices, per layer."""

    figure = "matrix error"

    def parameters(self) -> list[nn.Parameter]:
        names = ("in_proj.weight", "in_proj.bias", "conv_weight", "conv_bias", "dt_bias", "A_log", "D")
        return [p for _, m in mamba_layers(self.student) for name, p in m.named_parameters() if name in names]

    def loss(self, batch: Batch) -> Tensor:
        ragged = Ragged(batch.lens)
        layers = dict(mamba_layers(self.student))
        terms: list[Tensor] = []
        with torch.no_grad():
            x, rope = self.teacher.embed(batch.tokens), self.teacher.rope(ragged.positions)
        for i, block in enumerate(self.teacher.blocks):
            if i in layers and isinstance(block.mixer, Attention):
                with torch.no_grad():
                    u = block.input_norm(x)
                    target = block.mixer.matrix(u, ragged, rope)
                terms.append(relative_error(layers[i].matrix(u, ragged), target))
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
    mixer, or block, adds to the residual stream.
    """

    figure = "layer error"

    def terms(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Relative errors of mixer output and of block output, each [Mamba layers]."""
        ragged = Ragged(batch.lens)
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
                block_terms.append(relative_error(ours.feed_forward(x + own) - x, after - x))
            x = after
        return torch.stack(mixer_terms), torch.stack(block_terms)

    def loss(self, batch: Batch) -> Tensor:
        mixer, block = self.terms(batch)
        return mixer.mean() + block.mean()

    @torch.no_grad()
    def measure(self, batch: Batch) -> float:
        return self.terms(batch)[0].mean().item()


class Imitate(_Distill):
    """KL between next-token distributions over the answer's tokens, forward or reverse (or JSD)."""

    higher_is_better = True
    figure = "next-token agreement"

    def loss(self, batch: Batch) -> Tensor:
        ragged = Ragged(batch.lens)
        with torch.no_grad():
            target = self.teacher(batch.tokens, ragged)[batch.loss_mask]
        hidden = self.student(batch.tokens, ragged)[batch.loss_mask]
        return divergence(
            self.config.loss, hidden, self.student.head_weight, teacher=(target, self.teacher.head_weight)
        )

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
        return list(self.student.parameters())

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
    kind = {"orient": Orient, "align": Align, "imitate": Imitate}[config.name]
    return kind(config, student, teacher)
