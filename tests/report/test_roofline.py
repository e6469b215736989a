from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinkfast.models.decoder import Decoder
from thinkfast.models.spec import ModelSpec
from thinkfast.report.roofline import KINDS, ItemSizes, Machine, as_dict, decode_step

H100 = Machine("H100", 790e12, ((1.0, 3.0e12),))
LLAMA_1B = ModelSpec(128256, 2048, 32, 8, 64, 8192, ("attention",) * 16)
SMALL = ModelSpec(96, 32, 6, 2, 8, 48, ("attention",) * 4)


def facts_bound(batch: int, context: float, attention: int, d_state: int) -> float:
    """FACTS.md section 1 for Llama-3.2-1B shapes, written out again from its words."""
    rate, peak = 3.0e12, 790e12

    def gemm(params: float) -> float:
        return max(2 * params / rate, 2 * params * batch / peak)

    mlp, qkvo = 3 * 2048 * 8192, 2048 * (2048 + 512 + 512 + 2048)
    in_proj = 2048 + 512 + 8 * d_state + 32 * d_state + 32  # z, x, B, C, dt
    mamba = 16 - attention
    seconds = 16 * gemm(mlp) + attention * gemm(qkvo) + mamba * gemm(2048 * in_proj + 2048 * 2048)
    seconds += gemm(2048 * 128256) + batch * 128256 * 4 / rate
    seconds += attention * batch * context * 2 * 512 * 2 / rate
    channels = 512 + 8 * d_state + 32 * d_state
    return seconds + mamba * batch * 2 * (2048 * d_state + 4 * channels) * 2 / rate


@pytest.mark.parametrize("batch", [1, 64, 512])
@pytest.mark.parametrize("context", [1, 384, 2304])
@pytest.mark.parametrize(("keep", "d_state"), [(16, 0), (4, 64), (4, 16), (2, 64), (0, 64), (0, 16)])
def test_it_is_the_bound_of_facts(batch: int, context: int, keep: int, d_state: int) -> None:
    spec = LLAMA_1B if keep == 16 else LLAMA_1B.as_student(tuple(range(keep)), d_state)
    ours = decode_step(spec, batch, context).seconds(H100)
    assert ours == pytest.approx(facts_bound(batch, context, keep, d_state), rel=1e-9)


def test_it_prints_the_table_of_facts() -> None:
    """tokens/s at 512 sequences, 128 prompt, 512 new tokens: 133k, 148k, 202k, 153k, 243k."""
    students = [
        LLAMA_1B.as_student(keep, n) for keep, n in (((0, 1, 2, 3), 64), ((0, 1, 2, 3), 16), ((), 64), ((), 16))
    ]
    speeds = [512 / decode_step(spec, 512, 128 + 256).seconds(H100) / 1e3 for spec in (LLAMA_1B, *students)]
    assert [round(speed) for speed in speeds] == [133, 148, 202, 153, 243]


@pytest.mark.parametrize("spec", [SMALL, SMALL.as_student((1,), 4), SMALL.as_student((), 16)])
def test_weights_and_caches_are_those_of_a_real_model(spec: ModelSpec) -> None:
    cost = decode_step(spec, 3, 50, ItemSizes(1, 1, 1, 1))
    matrices = sum(p.numel() for name, p in Decoder(spec).named_parameters() if p.dim() == 2 and "conv" not in name)
    assert cost.bytes("gemm") == matrices  # the tied embedding is the vocabulary's matrix
    assert cost.flops("gemm") == 2 * 3 * matrices
    assert cost.bytes("kv") == 3 * 50 * spec.kv_bytes_per_token(1)
    mamba = spec.n_layers - spec.n_attention
    window = mamba * spec.conv_channels  # the newest input is read with the state, the oldest is dropped
    assert cost.bytes("state") == 2 * 3 * (spec.state_bytes(1) + window)
    assert cost.bytes() == sum(cost.bytes(kind) for kind in KINDS)


sizes = st.integers(1, 4096)


@given(sizes, sizes, sizes, st.sampled_from([(), (0,), (0, 3)]))
def test_more_rows_more_context_and_wider_items_never_cost_less(
    batch: int, context: int, more: int, keep: tuple[int, ...]
) -> None:
    spec = SMALL.as_student(keep, 8)

    def bound(b: int, c: int, s: int = 2) -> float:
        return decode_step(spec, b, c, ItemSizes(s, s, s, s)).seconds(H100)

    here = bound(batch, context)
    assert bound(batch + more, context) > here
    assert bound(batch, context, 4) > here
    assert bound(batch, context + more) > here if keep else bound(batch, context + more) == here
    # Weights are shared: a batch never costs more than its rows one by one.
    assert bound(batch, context) <= batch * bound(1, context) * (1 + 1e-9)


@given(sizes, sizes)
def test_a_faster_machine_is_never_slower(batch: int, context: int) -> None:
    cost = decode_step(SMALL, batch, context)
    base = cost.seconds(H100)
    assert cost.seconds(replace(H100, peak=2 * H100.peak)) <= base
    assert cost.seconds(Machine("", H100.peak, ((1.0, 6.0e12),))) < base
    assert cost.seconds(H100) == pytest.approx(sum(cost.seconds(H100, kind) for kind in KINDS))
    # No operation beats either roof.
    assert base * H100.peak >= cost.flops()
    assert base * 3.0e12 >= cost.bytes() * (1 - 1e-9)


def test_bandwidth_follows_the_working_set() -> None:
    cpu = Machine("cpu", 1e11, ((1e6, 4e10), (1e8, 1e10)))
    assert [cpu.bandwidth(size) for size in (1.0, 1e6, 1e7, 1e8, 1e12)] == pytest.approx([4e10, 4e10, 2e10, 1e10, 1e10])


def test_it_goes_into_json_by_kind() -> None:
    cost = decode_step(SMALL.as_student((), 4), 2, 10)
    found = as_dict(cost, H100)
    assert list(found) == ["gemm", "state", "logits", "all"]
    assert found["all"]["bound_ms"] == pytest.approx(1e3 * cost.seconds(H100))
    assert found["all"]["bytes"] == cost.bytes()


def test_a_layer_counts_what_torch_counts() -> None:
    """FLOPs of the projections against torch's own counter on one step's worth of tokens."""
    from torch.utils.flop_counter import FlopCounterMode

    from thinkfast.models.ragged import Ragged

    model = Decoder(SMALL.as_student((), 4)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hidden = model(torch.zeros(5, dtype=torch.int64), Ragged(torch.ones(5, dtype=torch.int64)))
        model.logits(hidden)
    counted = counter.get_flop_counts()["Global"]
    linear = sum(flops for operation, flops in counted.items() if str(operation) in ("aten.mm", "aten.addmm"))
    assert linear == decode_step(model.spec, 5, 1).flops("gemm")
