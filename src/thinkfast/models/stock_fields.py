"""Which fields of a stock config.json this decoder honours, which change nothing, and why other models are refused.

Why a list of harmless fields: a field that nobody here has heard of may scale logits, add a window or swap a norm.
Loading past it would give a model that runs and is wrong, so an unknown field is an error that names it.

Usage: ``refuse_unknown_fields(config)``, ``refusal("mixtral")``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from thinkfast.errors import ModelError

FAMILIES = ("llama", "qwen2", "qwen3", "granitemoehybrid")

_MOE = "its feed-forward layers are a mixture of experts, a dense MLP is needed"
_NORMS = "its block has other norms, scales or soft caps than Llama's"
_LINEAR = "its linear-attention or state-space layers are of another form than ours"
_WINDOW = "it may attend through a sliding window, which our cache does not have"
_FUSED = "its block is not Llama's (parallel residual, LayerNorm, fused or biased projections)"
_REASONS = {
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "granitemoe"), _MOE),
    **dict.fromkeys(("gpt_oss", "llama4", "llama4_text", "dbrx", "minimax_m2", "phimoe", "ernie4_5_moe"), _MOE),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "granite", "olmo2", "olmo3", "cohere"), _NORMS),
    **dict.fromkeys(("cohere2", "glm", "glm4", "exaone4", "minicpm", "stablelm", "nemotron"), _NORMS),
    **dict.fromkeys(("mamba", "mamba2", "jamba", "bamba", "zamba2", "falcon_mamba", "falcon_h1"), _LINEAR),
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_text", "lfm2", "rwkv", "nemotron_h"), _LINEAR),
    **dict.fromkeys(("mistral", "ministral", "smollm3"), _WINDOW),
    **dict.fromkeys(("gpt2", "gpt_neox", "gptj", "opt", "bloom", "falcon", "phi", "phi3", "starcoder2"), _FUSED),
}

_SHARED = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps"),
    *("tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "layer_types", "attention_bias"),
    *("partial_rotary_factor", "sliding_window"),
)
_HONOURED = {
    "llama": (*_SHARED, "mlp_bias", "rope_interleaved"),
    "qwen2": (*_SHARED, "use_sliding_window", "max_window_layers", "use_mrope"),
    "qwen3": (*_SHARED, "use_sliding_window", "max_window_layers"),
    "granitemoehybrid": (
        *_SHARED,
        *("num_local_experts", "num_experts_per_tok", "shared_intermediate_size", "position_embedding_type"),
        *("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier"),
        *("mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head", "mamba_d_conv", "mamba_expand"),
        *("mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias", "time_step_limit", "normalization_function"),
    ),
}
# Training, bookkeeping, and the generation defaults that older transformers wrote into every config.
_INERT = frozenset(
    (
        *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache", "name_or_path"),
        *("attention_dropout", "hidden_dropout", "attn_implementation", "initializer_range", "pretraining_tp"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id"),
        *("output_attentions", "output_hidden_states", "return_dict", "torchscript", "tf_legacy_loss", "use_bfloat16"),
        *("chunk_size_feed_forward", "pruned_heads", "is_decoder", "is_encoder_decoder", "cross_attention_hidden_size"),
        *("add_cross_attention", "tie_encoder_decoder", "finetuning_task", "id2label", "label2id", "num_labels"),
        *("problem_type", "task_specific_params", "tokenizer_class", "prefix", "max_length", "min_length", "do_sample"),
        *("early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p"),
        *(
            "typical_p",
            "repetition_penalty",
            "length_penalty",
            "no_repeat_ngram_size",
            "bad_words_ids",
            "suppress_tokens",
        ),
        *("encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores", "return_dict_in_generate"),
        *("forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty"),
        *("begin_suppress_tokens", "output_router_logits", "router_aux_loss_coef", "init_method", "logits_to_keep"),
        *("is_llama_config", "transformers.js_config", "unsloth_fixed", "unsloth_version", "model_name", "license"),
    )
)


def refusal(model_type: object) -> ModelError:
    """The error for a model that is not of our families, saying why where we know."""
    reason = _REASONS.get(str(model_type))
    return ModelError(
        f"model_type {model_type!r} is not supported" + (f": {reason}" if reason else ""),
        remedy=f"use a checkpoint of one of these: {', '.join(FAMILIES)}",
    )


def refuse_unknown_fields(config: Mapping[str, Any]) -> None:
    """Raise ModelError naming a field that is neither honoured nor known to change nothing; null says nothing."""
    if config.get("quantization_config") is not None:
        raise ModelError(
            "config.json has a quantization_config: the weights are packed in a form that is not read here",
            remedy="use the full-precision checkpoint, or a GGUF file of it",
        )
    known = {*_HONOURED[config["model_type"]], *_INERT}
    for name, value in config.items():
        if name in known or name.startswith("_") or value is None:
            continue
        if any(part in name for part in ("expert", "moe")):
            raise ModelError(f"config.json has {name} = {value!r}: {_MOE}", remedy="use a dense checkpoint")
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did it mean {close[0]!r}?)" if close else ""
        raise ModelError(
            f"config.json has an unknown field {name!r} = {value!r}{hint}; it may change what the model computes",
            remedy="if it changes nothing in the forward pass, take it out of config.json; else use another model",
        )
