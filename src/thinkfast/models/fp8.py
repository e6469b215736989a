"""Weights in eight bits: e4m3 with one scale per output channel, and inputs rounded row by row as they come.

The projections of every block, teacher's and student's alike, become `Fp8Linear`; embedding, head, norms and the small
vectors of a mixer stay as they are. A step then reads half the bytes and multiplies at twice the rate, at the price of
two roundings of three bits each. Off by default: `LLM(model, fp8_weights=True)`.

Legend: T rows, K inputs, N outputs.

Usage: ``model = in_fp8(model)``; ``torch._scaled_mm`` does the product where there is a GPU for it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thinkfast.models.decoder import Decoder, with_replaced

FP8 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
LEAST_SCALE = 1e-12  # of a row of zeros
ALIGNED = 16  # both sides of a product in eight bits are multiples of it


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, K] as e4m3 [T, K], and the fp32 scales [T, 1] it is to be multiplied by: a row's largest becomes 448."""
    wide = x.float()
    scale = (wide.abs().amax(-1, keepdim=True) / LARGEST).clamp_min(LEAST_SCALE)
    return (wide / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


class Fp8Linear(nn.Module):
    """A linear layer's weight in e4m3 [N', K], N' being N filled up with zeros to a multiple of 16, K also."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        rows, columns = (-size % ALIGNED for size in linear.weight.shape)
        weight, scale = quantize_rows(nn.functional.pad(linear.weight.detach(), (0, columns, 0, rows)))
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.t().contiguous())
        bias: Tensor | None = linear.bias
        self.register_buffer("bias", None if bias is None else nn.functional.pad(bias.detach(), (0, rows)))

    def product(self, x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """x [T, K'] in e4m3 with scales [T, 1] to [T, N'] in ``dtype``."""
        if x.is_cuda and dtype == torch.bfloat16:  # the only dtype that comes out of one with a scale a row
            return torch._scaled_mm(x, self.weight.t(), scale, self.scale, bias=self.bias, out_dtype=dtype)
        y = (x.float() @ self.weight.float().t()) * scale * self.scale
        return (y if self.bias is None else y + self.bias.float()).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, K] to [T, N]."""
        columns = self.weight.shape[1] - x.shape[-1]
        return self.of_rounded(*quantize_rows(nn.functional.pad(x, (0, columns)) if columns else x), x.dtype)

    def of_rounded(self, x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """x [T, K'] in e4m3 with scales [T, 1] to [T, N] in ``dtype``."""
        y = self.product(x, scale, dtype)
        return y if y.shape[-1] == self.out_features else y[..., : self.out_features].contiguous()


def in_fp8(model: Decoder) -> Decoder:
    """``model`` with its blocks' projections in eight bits; everything else is shared with it."""
    linears = [module for module in model.layers.modules() if isinstance(module, nn.Linear)]
    return with_replaced(model, {linear: Fp8Linear(linear) for linear in linears})


def is_fp8(model: Decoder) -> bool:
    """Whether ``in_fp8`` made it."""
    return any(isinstance(module, Fp8Linear) for module in model.modules())


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights and tables of a model as it lies in memory."""
    return sum(value.numel() * value.element_size() for value in [*model.parameters(), *model.buffers()])
