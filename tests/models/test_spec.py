from __future__ import annotations

from typing import Any

import pytest
import torch

from thinkfast.errors import ModelError
from thinkfast.models.attention import KVState
from thinkfast.models.decoder import Decoder
from thinkfast.models.mixers import SSMState
from thinkfast.models.ragged import Ragged

VARIANTS = [{}, {"qkv_bias": True}, {"tie_embeddings": False}, {"head_dim": 16}, {"qk_norm": True}, {"d_state": 5}]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("kind", ["teacher", "hybrid", "pure"])
def test_n_params_is_the_real_count(kind: str, group: int, changes: dict[str, Any], make_spec: Any) -> None:
    spec = make_spec(kind, group, **changes)
    assert spec.n_params == sum(p.numel() for p in Decoder(spec).parameters())


@pytest.mark.parametrize("kind", ["teacher", "hybrid", "pure"])
def test_bytes_are_those_of_the_states(kind: str, make_spec: Any, make_model: Any) -> None:
    spec = make_spec(kind, 3, d_state=5)
    _, states = make_model(spec).prefill(torch.arange(11), Ragged(torch.tensor([11])))
    kv = sum(s.k.numel() + s.v.numel() for s in states if isinstance(s, KVState))
    ssm = sum(s.conv.numel() + s.ssm.numel() for s in states if isinstance(s, SSMState))
    assert spec.kv_bytes_per_token(2) * 11 == 2 * kv
    assert spec.state_bytes(4) == 4 * ssm
    assert (kv == 0) == (kind == "pure")
    assert (ssm == 0) == (kind == "teacher")


def test_llama_1b_costs_what_facts_say(make_spec: Any) -> None:
    sizes = {"vocab_size": 128256, "d_model": 2048, "n_heads": 32, "n_kv_heads": 8, "head_dim": 64, "d_ff": 8192}
    teacher = make_spec(layer_types=("attention",) * 16, **sizes)
    pure = teacher.as_student((), 64)
    assert teacher.kv_bytes_per_token(2) == 32 * 1024
    assert 1e6 * 4.1 < pure.state_bytes(2) < 1e6 * 4.6
    assert round(pure.n_params / 1e9, 3) == 1.304  # FACTS.md, section 3


def test_as_student_keeps_the_layers_it_is_told(make_spec: Any) -> None:
    teacher = make_spec("teacher", 2, qkv_bias=True)
    hybrid, pure = teacher.as_student((1,)), teacher.as_student((), 4)
    assert hybrid.layer_types == ("mamba", "attention", "mamba")
    assert (hybrid.d_state, pure.d_state) == (8, 4)
    assert hybrid.ssm_kv_heads == 3
    assert hybrid.ssm_group == hybrid.group == 2
    assert hybrid.ssm_bias
    assert hybrid.qkv_bias
    assert not pure.qkv_bias  # no attention layer is left to have one
    assert (teacher.is_student, hybrid.is_student) == (False, True)
    assert (hybrid.n_attention, pure.n_attention, teacher.n_layers) == (1, 0, 3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"d_model": 0}, "d_model"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"n_heads": 6, "n_kv_heads": 4}, "6 heads cannot share 4"),
        ({"layer_types": ()}, "no layers"),
        ({"layer_types": ("attention", "mambo")}, "mambo"),
        ({"layer_types": ("mamba",)}, "d_state"),
        ({"layer_types": ("mamba",), "d_state": 4, "ssm_kv_heads": 4}, "ssm_kv_heads"),
        ({"layer_types": ("mamba",), "d_state": 4, "ssm_kv_heads": 6, "d_conv": 1}, "d_conv is 1"),
        ({"head_dim": 7}, "head_dim is 7"),
    ],
)
def test_impossible_sizes_are_refused_by_name(changes: dict[str, Any], named: str, make_spec: Any) -> None:
    with pytest.raises(ModelError, match=named):
        make_spec(**changes)


@pytest.mark.parametrize(("keep", "named"), [((3,), "layer 3"), ((-1,), "layer -1"), ((0, 1, 2), "every layer")])
def test_impossible_students_are_refused(keep: tuple[int, ...], named: str, make_spec: Any) -> None:
    with pytest.raises(ModelError, match=named):
        make_spec().as_student(keep)
