"""A GGUF file's metadata as the config.json of a stock checkpoint.

Strict like stock_config.py: a key of the architecture that is not known here is an error that names it.

Usage: ``config = to_stock_config(file)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from thinkfast.errors import ModelError
from thinkfast.models.gguf.header import GGUFFile
from thinkfast.models.stock_config import ARCHITECTURES
from thinkfast.models.stock_fields import refusal

# llama.cpp's names of architectures where they differ from transformers' model_type.
_OTHER_NAMES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "qwen3next": "qwen3_next"}
_STUDENTS = ("granitehybrid", "bamba")
_KNOWN = (
    *("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "attention.sliding_window", "attention.causal", "tensor_data_layout"),
    *("rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.finetuned"),
    *("rope.scaling.original_context_length", "expert_count", "expert_used_count"),
)
# Llama 3.1 to 3.3: every model of the family has these, only the factor differs (8 or 32).
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def to_stock_config(file: GGUFFile, tied: bool, rope_factors: np.ndarray[Any, Any] | None) -> dict[str, Any]:
    """The config.json of ``file``. tied: whether one matrix embeds and predicts; rope_factors [P / 2]: what llama.cpp
    divides the rotary frequencies by, where the file has it.

    Errors: ModelError naming an architecture or a key that this decoder cannot express, or a key that is missing.
    """
    arch = architecture(file)
    own = {key[len(arch) + 1 :]: value for key, value in file.metadata.items() if key.startswith(f"{arch}.")}
    for key, value in own.items():
        _refuse(arch, key, value)
    try:
        return _config(file, arch, own, tied, rope_factors)
    except KeyError as error:
        raise ModelError(
            f"{file.path} has no {arch}.{error.args[0]} in its metadata", remedy="convert the model to GGUF again"
        ) from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(
            f"{file.path} has metadata of the wrong type: {error}", remedy="convert the model to GGUF again"
        ) from error


def architecture(file: GGUFFile) -> str:
    """``llama``, ``qwen2`` or ``qwen3``. Errors: ModelError saying why another one is refused."""
    arch = str(file.metadata.get("general.architecture"))
    if arch in _STUDENTS:
        raise ModelError(
            f"{file.path} is a student in the form of llama.cpp ({arch}), padded and unfolded",
            remedy="load the folder it was exported from, or export it with --to hf and load that",
        )
    if arch not in ARCHITECTURES:
        error = refusal(_OTHER_NAMES.get(arch, arch))
        raise ModelError(f"{file.path}: {error.message}", remedy="use a GGUF of a Llama, Qwen2 or Qwen3 model")
    return arch


def shortest(value: float) -> float:
    """The decimal number that a float32 was written from: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _refuse(arch: str, key: str, value: Any) -> None:
    off = value in (0, None, "", "none", False)
    if key in ("expert_count", "expert_used_count") and not off:
        reason = "the model is a mixture of experts, a dense MLP is needed"
    elif key == "attention.sliding_window" and not off:
        reason = "some layers attend through a sliding window, this decoder's see everything"
    elif key == "rope.scaling.type" and not off:
        reason = f"rope type {value!r} is not supported, use default or llama3 rope"
    elif key == "attention.causal" and not value:
        reason = "the model does not attend causally"
    elif key not in _KNOWN:
        reason = "it may change what the model computes, and is not known here"
    else:
        return
    raise ModelError(f"the GGUF metadata has {arch}.{key} = {value!r}: {reason}", remedy="use another model")


def _config(
    file: GGUFFile, arch: str, own: Mapping[str, Any], tied: bool, rope_factors: np.ndarray[Any, Any] | None
) -> dict[str, Any]:
    heads, width = int(own["attention.head_count"]), int(own["embedding_length"])
    head_dim = int(own.get("attention.key_length") or width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if int(own.get(key) or head_dim) != head_dim:
            raise ModelError(
                f"the GGUF metadata has {arch}.{key} = {own[key]}, this decoder needs the head size {head_dim}",
                remedy="use another model",
            )
    theta = shortest(own.get("rope.freq_base", 10000.0))
    rope = {"rope_type": "default", "rope_theta": theta}
    if rope_factors is not None:
        rope |= _llama3(rope_factors, theta)
    config = {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": int(own["feed_forward_length"]),
        "num_hidden_layers": int(own["block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(own.get("attention.head_count_kv", heads)),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": int(own["context_length"]),
        "rms_norm_eps": shortest(own["attention.layer_norm_rms_epsilon"]),
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rope_parameters": rope,
        "rope_theta": theta,
        "use_cache": True,
        "dtype": "bfloat16",
    }
    if arch != "llama":
        config |= {"use_sliding_window": False, "sliding_window": None, "max_window_layers": int(own["block_count"])}
    return config


def _llama3(factors: np.ndarray[Any, Any], theta: float) -> dict[str, Any]:
    """The llama3 rope parameters that give ``factors`` [P / 2]; llama.cpp keeps only these quotients."""
    factor = shortest(float(factors.max()))
    wavelengths = 2 * math.pi * theta ** (np.arange(len(factors)) / len(factors))
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    smooth = np.clip((_LLAMA3["original_max_position_embeddings"] / wavelengths - low) / (high - low), 0, 1)
    if not np.allclose(1 / (smooth + (1 - smooth) / factor), factors, rtol=1e-3):
        raise ModelError(
            "the file's rope_freqs are not those of Llama 3's rope scaling", remedy="use the safetensors checkpoint"
        )
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
