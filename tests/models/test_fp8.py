"""Eight-bit projections: what is rounded, what is shared, and that the engine decodes with them as the model says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from thinkfast.models.decoder import Decoder, init_weights
from thinkfast.models.fp8 import FP8, Fp8Linear, in_fp8, is_fp8, quantize_rows, weight_bytes
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import ModelSpec

# Five heads: an in-projection of 165 rows has to be filled up.
TEACHER = ModelSpec(64, 80, 5, 5, 16, 112, ("attention",) * 3, tie_embeddings=False, max_positions=128)
SPECS = {"teacher": TEACHER, "hybrid": TEACHER.as_student((2,), 16), "pure": TEACHER.as_student((), 16)}


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e6])
def test_a_row_is_rounded_to_three_bits_of_its_largest(size: float) -> None:
    x = size * torch.randn(7, 33, generator=torch.Generator().manual_seed(0))
    x[3] = 0
    rounded, scale = quantize_rows(x)
    assert rounded.dtype == FP8
    assert scale.shape == (7, 1)
    back = rounded.float() * scale
    assert torch.isfinite(back).all()
    if size < 1e-20:
        return  # below the least scale all is zero
    # Half a step of three bits of an entry's own, or of the smallest normal number, 2^-6 of a largest of 448.
    allowed = torch.maximum(x.abs() / 16, x.abs().amax(-1, keepdim=True) * 2**-10 / 448)
    assert ((back - x).abs() <= allowed * 1.001).all()
    assert (back[3] == 0).all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 48), (40, 37), (16, 1)])
def test_a_layer_is_the_product_of_its_rounded_parts(inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=bias)
    layer = Fp8Linear(linear)
    assert layer.weight.shape[0] % 16 == layer.weight.shape[1] % 16 == 0
    x = torch.randn(9, inputs)
    (w8, ws), (x8, xs) = quantize_rows(linear.weight.detach()), quantize_rows(x)
    wanted = (x8.double() * xs) @ (w8.double() * ws).t() + (linear.bias.double() if bias else 0)
    assert torch.allclose(layer(x).double(), wanted, rtol=1e-5, atol=1e-5)
    # Two roundings of relative size 2^-4 at most, at random signs: a few percent of the product.
    off = (layer(x) - linear(x)).norm() / linear(x).norm()
    assert 0 < off < 0.06


@pytest.mark.parametrize("kind", SPECS)
def test_a_model_keeps_all_but_its_projections(kind: str) -> None:
    model = Decoder(SPECS[kind]).eval().requires_grad_(False)
    init_weights(model, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = in_fp8(model)
    assert (is_fp8(model), is_fp8(small)) == (False, True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert small.embed.weight is model.embed.weight
    assert small.head_weight is model.head_weight
    assert small.blocks[0].input_norm.weight is model.blocks[0].input_norm.weight
    assert not any(isinstance(module, nn.Linear) for module in small.layers.modules())
    projections = sum(m.weight.numel() for m in model.layers.modules() if isinstance(m, nn.Linear))
    saved = weight_bytes(model) - weight_bytes(small)
    assert 0.6 * 3 * projections < saved < 3 * projections  # of four bytes one stays, scales and filling up beside it
    tokens, ragged = torch.randint(0, 64, (30,)), Ragged(torch.tensor([11, 19]))
    large, rounded = (m.logits(m(tokens, ragged)).log_softmax(-1) for m in (model, small))
    change = (large.exp() * (large - rounded)).sum(-1).mean()
    assert 0 < change < 0.02
