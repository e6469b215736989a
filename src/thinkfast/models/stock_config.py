"""ModelSpec to and from the config.json of stock checkpoints: Llama, Qwen2, Qwen3, and GraniteMoeHybrid for students.

Qwen2 is Llama with a bias on q, k and v; Qwen3 is Llama with a norm on each head's q and k.

Strict both ways: what a stock config cannot say is refused when saving, what this decoder cannot compute is refused
when loading, so that no field is ever read over (FACTS.md, section 3).

Usage: ``from_config(json.loads(text))``; ``to_config(spec, {"eos_token_id": 4})``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from thinkfast.errors import ModelError
from thinkfast.models.spec import ModelSpec, RopeScaling
from thinkfast.models.stock_fields import FAMILIES, refusal, refuse_unknown_fields

# transformers 5 renames the layer types when it saves a config; we write the old names, which every reader knows.
LAYER_NAMES = {"linear_attention": "mamba", "full_attention": "attention"}
NO_LIMITS = ([0.0, math.inf], [0.0, {"__float__": "Infinity"}], None)
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_ROPE_FIELDS = (
    *("rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor"),
    *("original_max_position_embeddings", "partial_rotary_factor"),
)


def to_config(spec: ModelSpec, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """The stock config.json of ``spec``; ``extra`` carries what the decoder does not use (token ids).

    Errors: ModelError where no stock config expresses ``spec``.
    """
    family = "granitemoehybrid" if spec.is_student else spec.family
    if family not in FAMILIES:
        raise ModelError(f"there is no stock config of family {family!r}", remedy=f"use one of {', '.join(FAMILIES)}")
    said = {"qkv_bias": family == "qwen2", "qk_norm": family == "qwen3"}  # what the family's name alone implies
    for name, has in (("qkv_bias", spec.qkv_bias and spec.n_attention > 0), ("qk_norm", spec.qk_norm)):
        if has != said[name]:
            raise ModelError(
                f"{name} has no place in a stock {spec.family} config", remedy="save another kind of model"
            )
    config: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.d_model,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "intermediate_size": spec.d_ff,
        "max_position_embeddings": spec.max_positions,
        "rms_norm_eps": spec.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": spec.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        "rope_theta": spec.rope_theta,
        "use_cache": True,
    }
    if (s := spec.rope_scaling) is not None:
        config["rope_parameters"] |= {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_max_positions,
        }
        config["rope_scaling"] = config["rope_parameters"]
    if family != "granitemoehybrid":
        config |= {"architectures": [ARCHITECTURES[family]], "model_type": family, "head_dim": spec.head_dim}
        if family != "llama":
            config |= {"use_sliding_window": False, "sliding_window": None, "max_window_layers": spec.n_layers}
        return config | (extra or {})
    if spec.n_heads * spec.head_dim != spec.d_model:
        raise ModelError(
            f"GraniteMoeHybrid needs heads x head_dim = d_model, here {spec.n_heads} x {spec.head_dim}, {spec.d_model}",
            remedy="distill a teacher whose heads fill its width",
        )
    config |= {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": spec.d_ff,
        "position_embedding_type": "rope",
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": spec.head_dim**-0.5,
        "layer_types": list(spec.layer_types),
        "mamba_n_heads": spec.n_heads,
        "mamba_n_groups": spec.n_heads,
        "mamba_d_head": spec.head_dim,
        "mamba_d_state": spec.d_state,
        "mamba_d_conv": spec.d_conv,
        "mamba_expand": 1,
        "mamba_chunk_size": 256,
        "mamba_conv_bias": True,
        "mamba_proj_bias": spec.ssm_bias,
    }
    return config | (extra or {})


def from_config(config: dict[str, Any]) -> ModelSpec:
    """The spec of a stock config.json.

    Errors: ModelError naming a field that is missing, malformed, or that this decoder cannot express.
    """
    try:
        return _from_config(config)
    except KeyError as error:
        raise ModelError(
            f"config.json has no field {error.args[0]!r}", remedy="use the config.json that came with the weights"
        ) from error
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(
            f"config.json has a field of the wrong type: {error}",
            remedy="use the config.json that came with the weights",
        ) from error


def _from_config(config: dict[str, Any]) -> ModelSpec:
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise refusal(kind)
    heads, width, n_layers = (int(config[k]) for k in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
    # Where Qwen's configs leave these two out, transformers takes constants that no real model has: ask for them.
    kv_heads = int(
        config["num_key_value_heads"] if kind.startswith("qwen") else config.get("num_key_value_heads") or heads
    )
    head_dim = int(config["head_dim"] if kind == "qwen3" else config.get("head_dim") or width // heads)
    student = kind == "granitemoehybrid"
    kinds = tuple(LAYER_NAMES.get(k, k) for k in config["layer_types"]) if student else ("attention",) * n_layers
    if len(kinds) != n_layers:
        raise ModelError(f"{len(kinds)} layer_types for {n_layers} layers", remedy="make config.json agree")
    _refuse_other_forms(config, kinds, heads, head_dim)
    _refuse_windows(config)
    refuse_unknown_fields(config)
    mamba = "mamba" in kinds
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return ModelSpec(
        vocab_size=int(config["vocab_size"]),
        d_model=width,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        d_ff=int(config["shared_intermediate_size" if student else "intermediate_size"]),
        layer_types=kinds,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        rope_scaling=_rope_scaling(rope),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        d_state=int(config["mamba_d_state"]) if mamba else 0,
        d_conv=int(config.get("mamba_d_conv", 4)),
        ssm_kv_heads=kv_heads if mamba else 0,
        ssm_bias=bool(config.get("mamba_proj_bias", False)) and mamba,
        max_positions=int(config.get("max_position_embeddings", 2048)),
        family=str(kind),
    )


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    # "type" is what transformers 4 wrote for "rope_type".
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ModelError(f"rope type {kind!r} is not supported", remedy="use a checkpoint with default or llama3 rope")
    if bad := [name for name, value in rope.items() if name not in _ROPE_FIELDS and value is not None]:
        raise ModelError(f"config.json has an unknown rope field {bad[0]!r}", remedy="use default or llama3 rope")
    if kind == "default":
        return None
    return RopeScaling(
        float(rope["factor"]),
        float(rope["low_freq_factor"]),
        float(rope["high_freq_factor"]),
        int(rope["original_max_position_embeddings"]),
    )


def _refuse_other_forms(config: dict[str, Any], kinds: tuple[str, ...], heads: int, head_dim: int) -> None:
    """Every field that would change the computation must have the one value that this decoder computes.

    A field that is absent has transformers' default, which for GraniteMoeHybrid is mostly another one.
    """
    needed: dict[str, tuple[Any, Any]] = {"hidden_act": ("silu", "silu"), "attention_bias": (False, False)}
    needed["partial_rotary_factor"] = (1.0, 1.0)
    if config["model_type"] == "qwen2":
        del needed["attention_bias"]  # no field of Qwen2's: the bias on q, k and v is always there
    if config["model_type"] != "granitemoehybrid":
        needed |= {"mlp_bias": (False, False), "rope_interleaved": (False, False), "use_mrope": (False, False)}
    else:
        needed["normalization_function"] = ("rmsnorm", "rmsnorm")
        needed |= {"num_local_experts": (0, 8), "embedding_multiplier": (1.0, 1.0)}
        needed |= {"logits_scaling": (1.0, 1.0), "residual_multiplier": (1.0, 1.0)}
        if "attention" in kinds:
            needed |= {"position_embedding_type": ("rope", None), "attention_multiplier": (head_dim**-0.5, 1.0)}
        if "mamba" in kinds:
            needed |= {"mamba_n_heads": (heads, 128), "mamba_n_groups": (heads, 1), "mamba_expand": (1, 2)}
            needed |= {"mamba_d_head": (head_dim, "auto"), "mamba_conv_bias": (True, True)}
            if config.get("mamba_d_head", "auto") == "auto":
                del needed["mamba_d_head"]  # then it follows from the heads and expand
            if config.get("time_step_limit") not in NO_LIMITS:
                raise ModelError("config.json limits the time step", remedy="use a checkpoint without time_step_limit")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for name, (value, default) in needed.items():
        found = config.get(name, rope.get(name, default))
        same = math.isclose(found, value, rel_tol=1e-6) if isinstance(found, int | float) else found == value
        if not same:
            raise ModelError(
                f"{name} is {found!r} in config.json, this decoder computes {value!r} only",
                remedy="use a checkpoint of the supported form",
            )


def _refuse_windows(config: Mapping[str, Any]) -> None:
    """A sliding window in any of the ways that configs say it.

    Qwen's configs always carry a width and say with use_sliding_window whether it holds; elsewhere a width is a window.
    """
    kinds = config.get("layer_types") or ()
    other = [kind for kind in kinds if kind not in (*LAYER_NAMES, *LAYER_NAMES.values())]
    windowed = [kind for kind in other if "sliding" in str(kind) or "chunked" in str(kind)]
    named = "use_sliding_window" if config["model_type"].startswith("qwen") else "sliding_window"
    if config.get(named) or windowed:
        field = f"layer_types has {windowed[0]!r}" if windowed else f"{named} is {config[named]!r}"
        raise ModelError(
            f"{field} in config.json: some layers attend through a sliding window, this decoder's see everything",
            remedy="use a checkpoint with full attention",
        )
    if other:
        raise ModelError(f"layer_types has an unknown kind {other[0]!r}", remedy="use a checkpoint with full attention")
