"""Our decoder to and from stock checkpoints: Llama for teachers, GraniteMoeHybrid for students.

An adapter of two pure maps over named tensors (``to_stock``, ``from_stock``) and two over configs, so that a saved
model is a folder that transformers, vLLM and llama.cpp load without our code (FACTS.md, section 3). Inside, x and B
stay at key-value width; saving repeats them per query group, loading folds them back where the copies agree.

Usage: ``save_checkpoint(model, tokenizer_from="assets/tiny", out_dir="student")``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thinkfast.errors import ModelError, OutputError
from thinkfast.files import atomic_write
from thinkfast.models.decoder import Decoder
from thinkfast.models.spec import ModelSpec, RopeScaling
from thinkfast.models.tokenizer import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def _expand(t: Tensor, heads: int, group: int) -> Tensor:
    """[heads * width, ...] to [heads * group * width, ...]: each head's rows repeated for its query group."""
    return t.view(heads, -1, *t.shape[1:]).repeat_interleave(group, 0).reshape(-1, *t.shape[1:])


def _fold(t: Tensor, heads: int, group: int) -> Tensor | None:
    """Inverse of ``_expand``, or None where the copies differ."""
    copies = t.view(heads, group, -1, *t.shape[1:])
    return copies[:, 0].reshape(-1, *t.shape[1:]) if bool((copies == copies[:, :1]).all()) else None


def _mamba_to_stock(t: dict[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    h, k, g, p, n = spec.n_heads, spec.ssm_kv_heads, spec.ssm_group, spec.head_dim, spec.d_state

    def unfold(rows: Tensor, lead: tuple[int, ...]) -> Tensor:
        parts = rows.split((*lead, k * p, k * n, h * n, *((h,) if lead else ())))
        at = len(lead)
        return torch.cat((*parts[:at], _expand(parts[at], k, g), _expand(parts[at + 1], k, g), *parts[at + 2 :]))

    out = {
        "in_proj.weight": unfold(t["in_proj.weight"], (h * p,)),
        "conv1d.weight": unfold(t["conv_weight"], ())[:, None, :],
        "conv1d.bias": unfold(t["conv_bias"], ()),
        "dt_bias": t["dt_bias"],
        "A_log": t["A_log"],
        "D": t["D"],
        "norm.weight": t["norm_weight"],
        "out_proj.weight": t["out.weight"],
    }
    if spec.ssm_bias:
        out["in_proj.bias"] = unfold(t["in_proj.bias"], (h * p,))
        out["out_proj.bias"] = t["out.bias"]
    return out


def _mamba_from_stock(t: dict[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    h, k, g, p, n = spec.n_heads, spec.ssm_kv_heads, spec.ssm_group, spec.head_dim, spec.d_state

    def fold(rows: Tensor, lead: tuple[int, ...]) -> Tensor:
        parts = rows.split((*lead, h * p, h * n, h * n, *((h,) if lead else ())))
        at = len(lead)
        x, b = _fold(parts[at], k, g), _fold(parts[at + 1], k, g)
        if x is None or b is None:
            raise ModelError("x and B differ within a query group", remedy="load with ssm_kv_heads = n_heads")
        return torch.cat((*parts[:at], x, b, *parts[at + 2 :]))

    out = {
        "in_proj.weight": fold(t["in_proj.weight"], (h * p,)),
        "conv_weight": fold(t["conv1d.weight"].squeeze(1), ()),
        "conv_bias": fold(t["conv1d.bias"], ()),
        "dt_bias": t["dt_bias"],
        "A_log": t["A_log"],
        "D": t["D"],
        "norm_weight": t["norm.weight"],
        "out.weight": t["out_proj.weight"],
    }
    if spec.ssm_bias:
        out["in_proj.bias"], out["out.bias"] = fold(t["in_proj.bias"], (h * p,)), t["out_proj.bias"]
    return out


def _attention_rows(spec: ModelSpec) -> tuple[int, int, int]:
    return spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim


def _sub(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def to_stock(tensors: dict[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Our named tensors to the stock names and shapes of ``spec``'s family."""
    out = {"model.embed_tokens.weight": tensors["embed.weight"], "model.norm.weight": tensors["norm.weight"]}
    if not spec.tie_embeddings:
        out["lm_head.weight"] = tensors["head.weight"]
    for i, kind in enumerate(spec.layer_types):
        ours, theirs = _sub(tensors, f"layers.{i}."), f"model.layers.{i}."
        out[theirs + "input_layernorm.weight"] = ours["input_norm.weight"]
        out[theirs + "post_attention_layernorm.weight"] = ours["post_norm.weight"]
        if spec.is_student:
            out[theirs + "shared_mlp.input_linear.weight"] = ours["mlp.gate_up.weight"]
            out[theirs + "shared_mlp.output_linear.weight"] = ours["mlp.down.weight"]
        else:
            gate, up = ours["mlp.gate_up.weight"].chunk(2)
            out[theirs + "mlp.gate_proj.weight"], out[theirs + "mlp.up_proj.weight"] = gate, up
            out[theirs + "mlp.down_proj.weight"] = ours["mlp.down.weight"]
        if kind == "mamba":
            mamba = _mamba_to_stock(_sub(ours, "mixer."), spec)
            out |= {f"{theirs}mamba.{name}": t for name, t in mamba.items()}
            continue
        for leaf in ("weight", "bias") if spec.qkv_bias else ("weight",):
            for name, t in zip("qkv", ours[f"mixer.qkv.{leaf}"].split(_attention_rows(spec)), strict=True):
                out[f"{theirs}self_attn.{name}_proj.{leaf}"] = t
        out[theirs + "self_attn.o_proj.weight"] = ours["mixer.out.weight"]
        if spec.qk_norm:
            out[theirs + "self_attn.q_norm.weight"] = ours["mixer.q_norm"]
            out[theirs + "self_attn.k_norm.weight"] = ours["mixer.k_norm"]
    return {name: t.contiguous() for name, t in out.items()}


def from_stock(tensors: dict[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Stock tensors to ours: strict, every tensor used exactly once.

    Errors: ModelError naming the tensors that are missing, left over, or of another shape than the config says.
    """
    left = dict(tensors)
    missing: list[str] = []

    def take(name: str) -> Tensor:
        if name not in left:
            missing.append(name)
            return torch.empty(0)
        return left.pop(name)

    names = _stock_names(spec)
    stock = {name: take(name) for name in names}
    if spec.tie_embeddings:
        tied = left.pop("lm_head.weight", None)
        if tied is not None and not torch.equal(tied, stock["model.embed_tokens.weight"]):
            raise ModelError(
                "the config ties the embeddings but lm_head.weight differs from them",
                remedy="set tie_word_embeddings to false in config.json",
            )
    for layer in range(spec.n_layers):
        left.pop(f"model.layers.{layer}.self_attn.rotary_emb.inv_freq", None)
    if missing or left:
        parts = [f"missing {', '.join(sorted(missing)[:4])}"] if missing else []
        parts += [f"unused {', '.join(sorted(left)[:4])}"] if left else []
        raise ModelError(
            f"the weights do not match config.json: {'; '.join(parts)} ({len(missing)} missing, {len(left)} unused)",
            remedy="check that config.json and the safetensors files come from one model",
        )
    for name, shape in names.items():
        if tuple(stock[name].shape) != shape:
            raise ModelError(
                f"{name} has shape {tuple(stock[name].shape)}, config.json implies {shape}",
                remedy="check that config.json and the safetensors files come from one model",
            )
    out = {"embed.weight": stock["model.embed_tokens.weight"], "norm.weight": stock["model.norm.weight"]}
    if not spec.tie_embeddings:
        out["head.weight"] = stock["lm_head.weight"]
    for i, kind in enumerate(spec.layer_types):
        theirs, ours = _sub(stock, f"model.layers.{i}."), f"layers.{i}."
        out[ours + "input_norm.weight"] = theirs["input_layernorm.weight"]
        out[ours + "post_norm.weight"] = theirs["post_attention_layernorm.weight"]
        if spec.is_student:
            out[ours + "mlp.gate_up.weight"] = theirs["shared_mlp.input_linear.weight"]
            out[ours + "mlp.down.weight"] = theirs["shared_mlp.output_linear.weight"]
        else:
            out[ours + "mlp.gate_up.weight"] = torch.cat((theirs["mlp.gate_proj.weight"], theirs["mlp.up_proj.weight"]))
            out[ours + "mlp.down.weight"] = theirs["mlp.down_proj.weight"]
        if kind == "mamba":
            mamba = _mamba_from_stock(_sub(theirs, "mamba."), spec)
            out |= {f"{ours}mixer.{name}": t for name, t in mamba.items()}
            continue
        for leaf in ("weight", "bias") if spec.qkv_bias else ("weight",):
            out[f"{ours}mixer.qkv.{leaf}"] = torch.cat([theirs[f"self_attn.{c}_proj.{leaf}"] for c in "qkv"])
        out[ours + "mixer.out.weight"] = theirs["self_attn.o_proj.weight"]
        if spec.qk_norm:
            out[ours + "mixer.q_norm"] = theirs["self_attn.q_norm.weight"]
            out[ours + "mixer.k_norm"] = theirs["self_attn.k_norm.weight"]
    return out


def _stock_names(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every stock tensor that ``spec`` implies, with its shape, read off a meta model through ``to_stock``."""
    with torch.device("meta"):
        model = Decoder(spec)
    return {name: tuple(t.shape) for name, t in to_stock(dict(model.state_dict()), spec).items()}


def to_config(spec: ModelSpec, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """The stock config.json of ``spec``; ``extra`` carries what the decoder does not use (token ids)."""
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
    if not spec.is_student:
        config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": spec.head_dim}
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

    Errors: ModelError naming a field that is missing or that this decoder cannot express.
    """
    kind = config.get("model_type")
    if kind not in ("llama", "granitemoehybrid"):
        raise ModelError(f"model_type {kind!r} is not supported", remedy="use a Llama or GraniteMoeHybrid checkpoint")
    try:
        heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        scaling = None
        if rope.get("rope_type", "default") == "llama3":
            scaling = RopeScaling(
                float(rope["factor"]),
                float(rope["low_freq_factor"]),
                float(rope["high_freq_factor"]),
                int(rope["original_max_position_embeddings"]),
            )
        elif rope.get("rope_type", "default") != "default":
            raise ModelError(f"rope type {rope['rope_type']!r} is not supported", remedy="use default or llama3 rope")
        n_layers = int(config["num_hidden_layers"])
        student = kind == "granitemoehybrid"
        kinds = tuple(config["layer_types"]) if student else ("attention",) * n_layers
        if len(kinds) != n_layers:
            raise ModelError(f"{len(kinds)} layer_types for {n_layers} layers", remedy="make config.json agree")
        return ModelSpec(
            vocab_size=int(config["vocab_size"]),
            d_model=width,
            n_heads=heads,
            n_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or width // heads),
            d_ff=int(config["shared_intermediate_size" if student else "intermediate_size"]),
            layer_types=kinds,
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
            rope_scaling=scaling,
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            d_state=int(config["mamba_d_state"]) if "mamba" in kinds else 0,
            d_conv=int(config.get("mamba_d_conv", 4)),
            ssm_kv_heads=int(config.get("num_key_value_heads") or heads) if "mamba" in kinds else 0,
            ssm_bias=bool(config.get("mamba_proj_bias", False)) and "mamba" in kinds,
            max_positions=int(config.get("max_position_embeddings", 2048)),
            family=str(kind),
        )
    except KeyError as error:
        raise ModelError(
            f"config.json has no field {error.args[0]!r}", remedy="use the config.json that came with the weights"
        ) from error


def save_checkpoint(
    model: Decoder,
    tokenizer_from: str | Path,
    out_dir: str | Path,
    dtype: torch.dtype = torch.float32,
    token_ids: dict[str, Any] | None = None,
) -> Path:
    """Write ``model`` as a stock checkpoint folder with the tokenizer files of ``tokenizer_from``.

    Weights go last and whole, so a folder with model.safetensors is complete. Errors: OutputError.
    """
    from safetensors.torch import save

    out, source = Path(out_dir), Path(tokenizer_from)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in TOKENIZER_FILES:
            if (source / name).is_file() and (source / name).resolve() != (out / name).resolve():
                shutil.copyfile(source / name, out / name)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}", remedy="choose a writable folder") from error
    ids = token_ids if token_ids is not None else _token_ids(source)
    config = to_config(model.spec, {"dtype": str(dtype).removeprefix("torch."), **ids})
    atomic_write(out / "config.json", json.dumps(config, indent=2) + "\n")
    tensors = {name: t.detach().to("cpu", dtype) for name, t in model.state_dict().items()}
    atomic_write(out / "model.safetensors", save(to_stock(tensors, model.spec), metadata={"format": "pt"}))
    return out


def _token_ids(source: Path) -> dict[str, Any]:
    """bos, eos and pad ids: of the config.json beside a tokenizer, else of the tokenizer's own special tokens."""
    path = source / "config.json"
    if path.is_file():
        config = json.loads(path.read_text())
        return {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in config}
    return Tokenizer.from_dir(source).special_ids()
