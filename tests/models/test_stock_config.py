from __future__ import annotations

import json
import math
from typing import Any

import pytest

from thinkfast.errors import ModelError
from thinkfast.models.spec import RopeScaling
from thinkfast.models.stock_config import from_config, to_config

SCALING = RopeScaling(32.0, 1.0, 4.0, 8192)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"tie_embeddings": False, "norm_eps": 1e-6},
    {"rope_theta": 500000.0, "rope_scaling": SCALING, "max_positions": 131072},
    {"d_state": 5},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=range(len(VARIANTS)))
@pytest.mark.parametrize("kind", ["teacher", "hybrid", "pure"])
def test_from_config_inverts_to_config(kind: str, changes: dict[str, Any], make_spec: Any) -> None:
    spec = make_spec(kind, 2, **changes)
    assert from_config(json.loads(json.dumps(to_config(spec, {"eos_token_id": 4})))) == spec


def test_bias_of_a_folded_teacher_survives(make_spec: Any) -> None:
    spec = make_spec("pure", 2, qkv_bias=True)
    assert spec.ssm_bias
    assert from_config(to_config(spec)) == spec


def test_teacher_head_dim_may_differ_from_width_over_heads(make_spec: Any) -> None:
    spec = make_spec(head_dim=16)
    assert from_config(to_config(spec)) == spec


def test_extra_fields_ride_along(make_spec: Any) -> None:
    assert to_config(make_spec(), {"eos_token_id": 4})["eos_token_id"] == 4


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("teacher", {"qkv_bias": True}, "qkv_bias"),
        ("hybrid", {"qkv_bias": True}, "qkv_bias"),
        ("teacher", {"qk_norm": True}, "qk_norm"),
        ("hybrid", {"head_dim": 16}, "heads x head_dim"),
    ],
)
def test_what_a_stock_config_cannot_say_is_not_saved(
    kind: str, changes: dict[str, Any], named: str, make_spec: Any
) -> None:
    with pytest.raises(ModelError, match=named):
        to_config(make_spec(kind, **changes))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("embedding_multiplier", 12.0),
        ("logits_scaling", 8.0),
        ("residual_multiplier", 0.22),
        ("attention_multiplier", 1.0),
        ("position_embedding_type", None),
        ("num_local_experts", 8),
        ("mamba_n_groups", 1),
        ("mamba_n_heads", 12),
        ("mamba_expand", 2),
        ("mamba_d_head", 16),
        ("mamba_conv_bias", False),
        ("time_step_limit", [0.001, 0.1]),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
    ],
)
def test_another_form_of_granite_is_refused_and_never_read_over(field: str, value: object, make_spec: Any) -> None:
    config = to_config(make_spec("hybrid")) | {field: value}
    with pytest.raises(ModelError, match=field.removesuffix("_limit").replace("time_step", "time step")):
        from_config(config)


@pytest.mark.parametrize("field", ["attention_multiplier", "position_embedding_type", "num_local_experts"])
def test_an_absent_field_has_transformers_default_not_ours(field: str, make_spec: Any) -> None:
    config = to_config(make_spec("hybrid"))
    del config[field]
    with pytest.raises(ModelError, match=field):
        from_config(config)


@pytest.mark.parametrize("field", ["attention_bias", "mlp_bias"])
def test_llama_with_biases_is_refused(field: str, make_spec: Any) -> None:
    with pytest.raises(ModelError, match=field):
        from_config(to_config(make_spec()) | {field: True})


def test_a_config_that_transformers_saved_is_read(make_spec: Any) -> None:
    spec = make_spec("hybrid", 2)
    new = {"layer_types": ["linear_attention", "full_attention", "linear_attention"], "mamba_d_head": "auto"}
    for limit in ([0.0, {"__float__": "Infinity"}], [0.0, math.inf]):
        assert from_config(to_config(spec) | new | {"time_step_limit": limit}) == spec


def test_rope_is_found_where_older_transformers_put_it(make_spec: Any) -> None:
    spec = make_spec(rope_theta=500000.0, rope_scaling=SCALING)
    config = to_config(spec)
    old = config.pop("rope_parameters")
    config["rope_scaling"] = {("type" if k == "rope_type" else k): v for k, v in old.items() if k != "rope_theta"}
    assert from_config(config) == spec


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_unknown_rope_is_refused(key: str, make_spec: Any) -> None:
    config = to_config(make_spec()) | {"rope_parameters": None, "rope_scaling": {key: "linear", "factor": 2.0}}
    with pytest.raises(ModelError, match="'linear'"):
        from_config(config)


@pytest.mark.parametrize(
    "field", ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "intermediate_size"]
)
def test_a_missing_field_is_named(field: str, make_spec: Any) -> None:
    config = to_config(make_spec())
    del config[field]
    with pytest.raises(ModelError, match=field):
        from_config(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"vocab_size": None},
        {"num_attention_heads": 0, "head_dim": None},
        {"rope_parameters": 3},
    ],
    ids=str,
)
def test_a_malformed_field_is_an_error_for_the_user(changes: dict[str, Any], make_spec: Any) -> None:
    with pytest.raises(ModelError, match=r"wrong type|n_heads"):
        from_config(to_config(make_spec()) | changes)


@pytest.mark.parametrize("config", [[], 3, "llama", None])
def test_a_config_that_is_no_object(config: Any) -> None:
    with pytest.raises(ModelError):
        from_config(config)


def test_other_models_and_disagreeing_layers(make_spec: Any) -> None:
    with pytest.raises(ModelError, match="'mistral'"):
        from_config(to_config(make_spec()) | {"model_type": "mistral"})
    with pytest.raises(ModelError, match="2 layer_types for 3 layers"):
        from_config(to_config(make_spec("hybrid")) | {"layer_types": ["mamba", "attention"]})
