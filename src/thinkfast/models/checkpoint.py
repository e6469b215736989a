"""Our decoder to and from stock checkpoints: Llama, Qwen2, Qwen3 for teachers, GraniteMoeHybrid for students.

An adapter of two maps over named tensors (``to_stock``, ``from_stock``), with stock_config.py beside it, so that a
saved model is a folder that transformers, vLLM and llama.cpp load without our code (FACTS.md, section 3). Inside, x
and B stay at key-value width; saving repeats them per query group, loading folds them back where the copies agree.

Usage: ``save_checkpoint(model, tokenizer_from="assets/tiny", out_dir="student")``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thinkfast.errors import ModelError
from thinkfast.files import atomic_write, output_errors
from thinkfast.models.decoder import Decoder
from thinkfast.models.skeleton import skeleton
from thinkfast.models.spec import ModelSpec
from thinkfast.models.stock_config import to_config
from thinkfast.models.tensorfiles import Read, Shapes
from thinkfast.models.tokenizer import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
EMBED, HEAD, FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
Pieces = tuple[Tensor, ...]


class UnfoldableError(ModelError):
    """x or B differs within a query group: these weights have no compact form, only one with ssm_kv_heads = n_heads."""


def _expand(t: Tensor, heads: int, group: int) -> Tensor:
    """[heads * width, ...] to [heads * group * width, ...]: each head's rows repeated for its query group."""
    return t.view(heads, -1, *t.shape[1:]).repeat_interleave(group, 0).reshape(-1, *t.shape[1:])


def _fold(t: Tensor, heads: int, group: int) -> Tensor | None:
    """Inverse of ``_expand``, or None where the copies differ."""
    copies = t.view(heads, group, -1, *t.shape[1:])
    return copies[:, 0].reshape(-1, *t.shape[1:]) if bool((copies == copies[:, :1]).all()) else None


def _cat(parts: Sequence[Tensor]) -> Tensor:
    """torch.cat, which of meta tensors, asked for their shape, imports torch's compiler and takes a second."""
    if parts[0].is_meta:
        return parts[0].new_empty((sum(map(len, parts)), *parts[0].shape[1:]))
    return torch.cat(tuple(parts))


def _mamba_to_stock(t: dict[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    h, k, g, p, n = spec.n_heads, spec.ssm_kv_heads, spec.ssm_group, spec.head_dim, spec.d_state

    def unfold(rows: Tensor, lead: tuple[int, ...]) -> Tensor:
        parts = rows.split_with_sizes((*lead, k * p, k * n, h * n, *((h,) if lead else ())))
        at = len(lead)
        return _cat((*parts[:at], _expand(parts[at], k, g), _expand(parts[at + 1], k, g), *parts[at + 2 :]))

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
        parts = rows.split_with_sizes((*lead, h * p, h * n, h * n, *((h,) if lead else ())))
        at = len(lead)
        x, b = _fold(parts[at], k, g), _fold(parts[at + 1], k, g)
        if x is None or b is None:
            raise UnfoldableError("x or B differs within a query group", remedy="give the spec ssm_kv_heads = n_heads")
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
    out = {EMBED: tensors["embed.weight"], FINAL_NORM: tensors["norm.weight"]}
    if not spec.tie_embeddings:
        out[HEAD] = tensors["head.weight"]
    for i, kind in enumerate(spec.layer_types):
        ours, theirs = _sub(tensors, f"layers.{i}."), f"model.layers.{i}."
        out[theirs + "input_layernorm.weight"] = ours["input_norm.weight"]
        out[theirs + "post_attention_layernorm.weight"] = ours["post_norm.weight"]
        if _is_granite(spec):
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
            for name, t in zip("qkv", ours[f"mixer.qkv.{leaf}"].split_with_sizes(_attention_rows(spec)), strict=True):
                out[f"{theirs}self_attn.{name}_proj.{leaf}"] = t
        out[theirs + "self_attn.o_proj.weight"] = ours["mixer.out.weight"]
        if spec.qk_norm:
            out[theirs + "self_attn.q_norm.weight"] = ours["mixer.q_norm"]
            out[theirs + "self_attn.k_norm.weight"] = ours["mixer.k_norm"]
    return {name: t.contiguous() for name, t in out.items()}


def from_stock(tensors: dict[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Stock tensors to ours: strict, every tensor used exactly once.

    Errors: ModelError naming the tensors that are missing, left over, or of another shape than the config says;
    UnfoldableError where a wider ``spec`` would do.
    """
    check_stock({name: tuple(t.shape) for name, t in tensors.items()}, spec)
    for name, t in tensors.items():
        if not t.is_floating_point():
            raise ModelError(f"{name} holds {t.dtype}", remedy="use weights that are not quantised")
    pieces = convert_stock(lambda names: {name: tensors[name] for name in names}, spec, HEAD in tensors)
    return {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in pieces}


def check_stock(shapes: Shapes, spec: ModelSpec) -> None:
    """Check names and shapes of a checkpoint against ``spec``, before any weight is read.

    Errors: ModelError naming the tensors that are missing, left over, or of another shape than the config says.
    """
    wanted = stock_shapes(spec)
    ignored = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(spec.n_layers)}
    if spec.tie_embeddings:
        ignored.add(HEAD)  # a tied head may be stored; convert_stock holds it to its word
    missing = [name for name in wanted if name not in shapes]
    unused = [name for name in shapes if name not in wanted and name not in ignored]
    if missing or unused:
        parts = [f"missing {', '.join(sorted(missing)[:4])}"] if missing else []
        parts += [f"unused {', '.join(sorted(unused)[:4])}"] if unused else []
        raise ModelError(
            f"the weights do not match config.json: {'; '.join(parts)} ({len(missing)} missing, {len(unused)} unused)",
            remedy=_mismatch_remedy(missing, unused, spec),
        )
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise ModelError(
                f"{name} has shape {shapes[name]}, config.json implies {shape}",
                remedy="check that config.json and the safetensors files come from one model",
            )


def _mismatch_remedy(missing: list[str], unused: list[str], spec: ModelSpec) -> str:
    if missing == [HEAD]:
        return "if the embeddings are tied, set tie_word_embeddings to true in config.json; else copy all the weights"
    if any(part in name for name in unused for part in ("expert", "block_sparse_moe")):
        return "a mixture of experts is not supported: use a dense model"
    if any(name.endswith("_proj.bias") for name in unused) and spec.family == "llama":
        return "a Llama block with biases is not supported; Qwen2's biases need model_type qwen2 in config.json"
    return "check that config.json and the safetensors files come from one model"


def convert_stock(read: Read, spec: ModelSpec, has_head: bool) -> Iterator[tuple[str, Pieces]]:
    """Our tensors by name, each as the pieces whose rows make it up; names and shapes are checked already.

    One layer's stock tensors are ``read`` at a time, and pieces are not joined here, so that a caller that copies
    them into place holds no weight twice.

    Errors: ModelError where a tied head differs from the embeddings; UnfoldableError as for ``from_stock``.
    """
    names = stock_shapes(spec)
    stock = read([EMBED, *([HEAD] if has_head else [])])
    if spec.tie_embeddings and has_head and not torch.equal(stock[HEAD], stock[EMBED]):
        raise ModelError(
            f"the config ties the embeddings but {HEAD} differs from them",
            remedy="set tie_word_embeddings to false in config.json",
        )
    yield "embed.weight", (stock.pop(EMBED),)
    if not spec.tie_embeddings:
        yield "head.weight", (stock.pop(HEAD),)
    stock.clear()
    yield "norm.weight", (read([FINAL_NORM])[FINAL_NORM],)
    for i, kind in enumerate(spec.layer_types):
        prefix = f"model.layers.{i}."
        theirs = _sub(read([name for name in names if name.startswith(prefix)]), prefix)
        for name, pieces in _layer_from_stock(theirs, spec, kind).items():
            yield f"layers.{i}.{name}", pieces


def _layer_from_stock(theirs: dict[str, Tensor], spec: ModelSpec, kind: str) -> dict[str, Pieces]:
    def one(name: str) -> Pieces:
        return (theirs[name],)

    out = {
        "input_norm.weight": one("input_layernorm.weight"),
        "post_norm.weight": one("post_attention_layernorm.weight"),
    }
    if _is_granite(spec):
        out["mlp.gate_up.weight"] = one("shared_mlp.input_linear.weight")
        out["mlp.down.weight"] = one("shared_mlp.output_linear.weight")
    else:
        out["mlp.gate_up.weight"] = (theirs["mlp.gate_proj.weight"], theirs["mlp.up_proj.weight"])
        out["mlp.down.weight"] = one("mlp.down_proj.weight")
    if kind == "mamba":
        mamba = _mamba_from_stock(_sub(theirs, "mamba."), spec)
        return out | {f"mixer.{name}": (t,) for name, t in mamba.items()}
    for leaf in ("weight", "bias") if spec.qkv_bias else ("weight",):
        out[f"mixer.qkv.{leaf}"] = tuple(theirs[f"self_attn.{c}_proj.{leaf}"] for c in "qkv")
    out["mixer.out.weight"] = one("self_attn.o_proj.weight")
    if spec.qk_norm:
        out["mixer.q_norm"] = one("self_attn.q_norm.weight")
        out["mixer.k_norm"] = one("self_attn.k_norm.weight")
    return out


def _is_granite(spec: ModelSpec) -> bool:
    return spec.is_student or spec.family == "granitemoehybrid"


def stock_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every stock tensor that ``spec`` implies, with its shape, read off a skeleton through ``to_stock``."""
    return {name: tuple(t.shape) for name, t in to_stock(dict(skeleton(spec).state_dict()), spec).items()}


def save_checkpoint(
    model: Decoder,
    tokenizer_from: str | Path,
    out_dir: str | Path,
    dtype: torch.dtype = torch.float32,
    token_ids: dict[str, Any] | None = None,
) -> Path:
    """Write ``model`` as a stock checkpoint folder with the tokenizer files of ``tokenizer_from``.

    Weights go last and whole, so a folder with model.safetensors is complete. Errors: OutputError, and ModelError,
    before anything is written, where no stock config expresses the model.
    """
    from safetensors.torch import save

    out, source = Path(out_dir), Path(tokenizer_from)
    ids = token_ids if token_ids is not None else _token_ids(source)
    config = to_config(model.spec, {"dtype": str(dtype).removeprefix("torch."), **ids})
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for name in ("model.safetensors", "model.safetensors.index.json"):  # never new config beside old weights
            (out / name).unlink(missing_ok=True)
        for name in TOKENIZER_FILES:
            if (source / name).is_file() and (source / name).resolve() != (out / name).resolve():
                shutil.copyfile(source / name, out / name)
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
