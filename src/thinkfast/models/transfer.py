"""Teacher weights to a student: a plan first, then its execution.

Legend: D model width, H heads, K key-value heads, G = H / K, P head dim, N state, C conv channels.

Attention-to-SSM transfer (Mamba-in-Llama, arXiv 2408.15237, section 3): V becomes x, K becomes B, Q becomes C, O
becomes out_proj; MLPs, norms, embeddings and kept attention layers are copied. The rest starts so that the mixer is
near a causal linear attention (DESIGN.md, section 3): delta convolution, a gate near a constant, slow decays. The
mixer's per-head norm hides any scale before it, which is used twice: x, B and C start small, where SiLU is nearly
linear, and the norm's weight starts at what each of the teacher's heads puts out on average.
Where N < P, the rank of each head's Q K^T is cut by an SVD weighted by the covariance of the layer's inputs.

Usage: ``plan = plan_transfer(teacher.spec, student_spec); student = transfer(teacher, plan, moments)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from thinkfast.errors import ModelError
from thinkfast.models.attention import Attention
from thinkfast.models.decoder import Decoder
from thinkfast.models.mixers import Mamba
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import ModelSpec
from thinkfast.models.stock_config import to_config

UNCHANGED = (
    *("vocab_size", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff", "n_layers"),
    *("norm_eps", "rope_theta", "rope_scaling", "tie_embeddings"),
)
GATE = 1.5
SLOWEST, FASTEST = 512.0, 16.0
LINEAR = 0.3  # root mean square of a head's x, B and C at the start: SiLU bends by a few per cent there


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What happens to one layer: ``copy`` its attention, or ``convert`` it to Mamba at rank ``rank`` of ``of``."""

    layer: int
    action: str
    rank: int = 0
    of: int = 0

    def __str__(self) -> str:
        if self.action == "copy":
            return f"layer {self.layer}: attention kept"
        cut = f", rank {self.of} cut to {self.rank}" if self.rank < self.of else ""
        return f"layer {self.layer}: V->x, K->B, Q->C, O->out{cut}"


@dataclass(frozen=True, slots=True)
class TransferPlan:
    """The student's spec and one line a layer."""

    spec: ModelSpec
    layers: tuple[LayerPlan, ...]


@dataclass(frozen=True, slots=True)
class InputMoments:
    """Of one layer: mean [D] and second moment [D, D] of its normed inputs, mean square of each head's output [H]."""

    mean: Tensor
    second: Tensor
    heads: Tensor


def plan_transfer(teacher: ModelSpec, student: ModelSpec) -> TransferPlan:
    """Check that ``student`` can be made from ``teacher`` and say how.

    Errors: ModelError where sizes differ that a transfer cannot change, or where the student could not be saved.
    """
    for name in UNCHANGED:
        if getattr(teacher, name) != getattr(student, name):
            raise ModelError(
                f"{name} is {getattr(teacher, name)} in the teacher, {getattr(student, name)} in the student",
                remedy="make the student's spec with teacher.spec.as_student(...)",
            )
    if teacher.is_student:
        raise ModelError("the teacher already has Mamba layers", remedy="distill from a Transformer")
    if teacher.qk_norm:
        raise ModelError("a teacher with qk-norm has no linear Q and K", remedy="use a Llama- or Qwen2-style teacher")
    if student.is_student and student.ssm_kv_heads != teacher.n_kv_heads:
        raise ModelError(
            f"x and B have {student.ssm_kv_heads} heads, the teacher's V and K {teacher.n_kv_heads}",
            remedy="make the student's spec with teacher.spec.as_student(...)",
        )
    if teacher.qkv_bias and student.is_student and not student.ssm_bias:
        raise ModelError("the teacher's Q, K and V bias would be lost", remedy="give the student ssm_bias")
    to_config(student)  # refuses now what could not be saved after hours of training
    rank, of = min(student.d_state, teacher.head_dim), teacher.head_dim
    return TransferPlan(
        student,
        tuple(
            LayerPlan(i, "copy") if kind == "attention" else LayerPlan(i, "convert", rank, of)
            for i, kind in enumerate(student.layer_types)
        ),
    )


@torch.no_grad()
def input_moments(teacher: Decoder, batches: Iterable[tuple[Tensor, Ragged]]) -> list[InputMoments]:
    """Moments of every layer's normed inputs over ``batches`` of (tokens [T], ragged)."""
    d, h = teacher.spec.d_model, teacher.spec.n_heads
    device = teacher.embed.weight.device
    total = 0
    mean = torch.zeros(teacher.spec.n_layers, d, dtype=torch.float64, device=device)
    second = torch.zeros(teacher.spec.n_layers, d, d, dtype=torch.float64, device=device)
    heads = torch.zeros(teacher.spec.n_layers, h, dtype=torch.float64, device=device)
    for tokens, ragged in batches:
        x, rope = teacher.embed(tokens), teacher.rope(ragged.positions)
        for i, block in enumerate(teacher.blocks):
            normed = block.input_norm(x)
            u = normed.double()
            mean[i] += u.sum(0)
            second[i] += u.T @ u
            mixer = cast(Attention, block.mixer)
            gathered, _ = mixer.heads(normed, ragged, rope)
            heads[i] += gathered.double().square().view(len(u), h, -1).mean(-1).sum(0)
            x = block.feed_forward(x + mixer.out(gathered))
        total += tokens.numel()
    if total == 0:
        raise ModelError("no tokens to measure layer inputs on", remedy="give at least one calibration batch")
    return [InputMoments(*(t / total for t in sums)) for sums in zip(mean, second, heads, strict=True)]


def transfer(teacher: Decoder, plan: TransferPlan, moments: Sequence[InputMoments], seed: int = 0) -> Decoder:
    """Execute ``plan``: a trainable student on the teacher's device, in its dtype."""
    weight = teacher.embed.weight
    student = Decoder(plan.spec).to(device=weight.device, dtype=weight.dtype)
    source = teacher.state_dict()
    copied = {
        name: source[name]
        for name in student.state_dict()
        if ".mixer." not in name or plan.layers[int(name.split(".")[1])].action == "copy"
    }
    student.load_state_dict(copied, strict=False)
    generator = torch.Generator().manual_seed(seed)
    for step in plan.layers:
        if step.action == "convert":
            _convert(
                cast(Attention, teacher.blocks[step.layer].mixer),
                cast(Mamba, student.blocks[step.layer].mixer),
                moments[step.layer],
                generator,
            )
    return student


@torch.no_grad()
def _convert(attention: Attention, mamba: Mamba, moments: InputMoments, generator: torch.Generator) -> None:
    h, k, p, n = mamba.n_heads, mamba.kv_heads, mamba.head_dim, mamba.d_state
    w = attention.qkv.weight
    bias = cast("Tensor | None", attention.qkv.bias)
    bias = w.new_zeros(w.shape[0]) if bias is None else bias
    rows = torch.cat((w, bias[:, None]), 1).double()  # homogeneous: a bias is one more input that is always 1
    q, key, v = rows.split_with_sizes((h * p, k * p, k * p))
    q, key = q.view(k, h // k, p, -1), key.view(k, p, -1)
    if n < p:
        q, key = _cut_rank(q, key, moments, n)
    elif n > p:
        # Spare states start small and random: zero would leave both factors without a gradient.
        spare = torch.randn(n - p, rows.shape[1], generator=generator, dtype=torch.float64).to(rows.device) * 1e-3
        q = torch.cat((q, spare.expand(k, h // k, -1, -1)), 2)
        key = torch.cat((key, spare.flip(0).expand(k, -1, -1)), 1)
    v, key, q = (_scaled(rows, moments) for rows in (v.view(k, p, -1), key, q))
    mean, second = moments.mean, moments.second
    damp = 1e-4 * second.diagonal().mean() * torch.eye(len(mean), dtype=second.dtype, device=second.device)
    # Least squares for a direction whose projection is nearly constant over tokens: the gate starts open.
    gate = torch.linalg.solve(second + damp, mean) * GATE
    gate_rows = torch.cat((gate, gate.new_zeros(1))).expand(h * p, -1)
    dt_rows = torch.zeros(h, rows.shape[1], dtype=rows.dtype, device=rows.device)
    parts = (gate_rows, v.reshape(k * p, -1), key.reshape(k * n, -1), q.reshape(h * n, -1), dt_rows)
    in_rows = torch.cat(parts)
    mamba.in_proj.weight.copy_(in_rows[:, :-1])
    if cast("Tensor | None", mamba.in_proj.bias) is not None:
        mamba.in_proj.bias.copy_(in_rows[:, -1])
        mamba.out.bias.zero_()
    mamba.out.weight.copy_(attention.out.weight)
    mamba.conv_weight.zero_()
    mamba.conv_weight[:, -1] = 1.0
    mamba.conv_bias.zero_()
    # dt starts at 1, so that nothing is lost of x; the memory of head i is tau_i tokens, log-spaced over heads.
    mamba.dt_bias.fill_(math.log(math.expm1(1.0)))
    tau = torch.logspace(math.log10(FASTEST), math.log10(SLOWEST), h, dtype=torch.float64)
    mamba.A_log.copy_(-tau.log())
    mamba.D.zero_()
    mamba.norm_weight.copy_(moments.heads.sqrt().repeat_interleave(p))


def _scaled(rows: Tensor, moments: InputMoments) -> Tensor:
    """Rows [..., R, D + 1] of one projection, each head's brought to a root mean square of LINEAR over the inputs."""
    d = moments.mean.shape[0]
    second = moments.second.new_ones(d + 1, d + 1)
    second[:d, :d], second[:d, d], second[d, :d] = moments.second, moments.mean, moments.mean
    power = torch.einsum("...rd,de,...re->...", rows, second, rows) / rows.shape[-2]
    return rows * (LINEAR / power.clamp_min(1e-12).sqrt())[..., None, None]


def _cut_rank(q: Tensor, key: Tensor, moments: InputMoments, rank: int) -> tuple[Tensor, Tensor]:
    """Best common rank-``rank`` factors of every group's Q_g K^T under the inputs' covariance.

    q [K, G, P, D + 1], key [K, P, D + 1] to q [K, G, N, D + 1], key [K, N, D + 1]. With S the covariance and
    Q, K in whitened coordinates, B = V_r^T spans the leading right singular vectors of the stacked Q_g^T K
    (Eckart-Young), and C_g = (K V_r)^T Q_g (FACTS.md, section 4: 92 % of the energy at rank 16, against 63 %).
    """
    centred = moments.second - torch.outer(moments.mean, moments.mean)
    d = centred.shape[0]
    cov = torch.eye(d + 1, dtype=centred.dtype, device=centred.device) * 1e-6
    cov[:d, :d] += centred
    root = torch.linalg.cholesky(cov + 1e-9 * cov.diagonal().mean() * torch.eye(d + 1, dtype=cov.dtype).to(cov))
    new_q, new_key = [], []
    for queries, k in zip(q, key, strict=True):
        whitened = k @ root
        gram = torch.einsum("gpd,gqd->pq", queries @ root, queries @ root)
        values, vectors = torch.linalg.eigh(gram)
        half = vectors * values.clamp_min(0).sqrt()  # gram = half half^T
        u, s, vt = torch.linalg.svd(half.T @ whitened, full_matrices=False)
        basis = (half @ u[:, :rank]) / s[:rank].clamp_min(1e-12)
        new_key.append(basis.T @ k)
        new_q.append(torch.einsum("pr,gpd->grd", whitened @ vt[:rank].T, queries))
    return torch.stack(new_q), torch.stack(new_key)
