"""A GGUF file's vocabulary as tokenizer.json, tokenizer_config.json and the rest that a stock folder carries.

Why by hand and not through transformers' converters: those split text as GPT-2 does wherever they do not know a
pre-tokenizer's name, SmolLM's among them, and so give other tokens than the model was trained on. Here a name that is
not known is refused. Byte-level BPE only, which is what Llama 3, SmolLM, Qwen2 and Qwen3 have.

Usage: ``write_tokenizer(file, folder)``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinkfast.errors import ModelError
from thinkfast.models.gguf.header import GGUFFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
# Ours: how many merges at the end of the list our export added, to build words that the tokenizer takes whole.
ADDED = "thinkfast.added_merges"
_KINDS = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
# Tokens that end a text wherever they are control tokens, as llama.cpp has it: files name only one of several.
_ENDS = ("<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "</s>")

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = f"{_CONTRACTIONS}\\p{{N}}{_REST}"
LLAMA3 = f"{_CONTRACTIONS}\\p{{N}}{{1,3}}{_REST}"
GPT2, DIGITS = "gpt2", "digits"
# llama.cpp's name of a pre-tokenizer: how it splits text.
SPLITS = {
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), QWEN2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe", "dbrx"), LLAMA3),
    **dict.fromkeys(("smollm", "starcoder", "refact"), DIGITS),
    "gpt-2": GPT2,
}
# Where a piece of text that is a token of its own is taken whole, whatever the merges say.
_IGNORE_MERGES = ("llama-bpe", "llama3", "llama-v3", "falcon3")


def write_tokenizer(file: GGUFFile, folder: Path) -> None:
    """Write the tokenizer, its config, the chat template and generation_config.json into ``folder``.

    Errors: ModelError where the file has no vocabulary, one of another kind, or an id that is no token of it.
    """
    tokens = _tokens(file)
    special = _special(file, tokens)
    kinds = _field(file, "token_type", [1] * len(tokens), len(tokens))
    backend = _backend(file, tokens, kinds)
    backend.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {f"{kind}_token": tokens[i] for kind, i in special.items()}
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "model_max_length": int(file.metadata.get(f"{file.metadata['general.architecture']}.context_length", 2048)),
    }
    _write(folder / "tokenizer_config.json", config)
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template)
    ends = {special["eos"]} | {i for i, t in enumerate(tokens) if t in _ENDS and kinds[i] == CONTROL}
    for key in ("eot_token_id", "eom_token_id"):
        i = file.metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(i, int) and 0 <= i < len(tokens):
            ends.add(i)
    # The named end comes first: readers that want a single one take it.
    generation: dict[str, Any] = {"eos_token_id": sorted(ends, key=lambda i: (i != special["eos"], i))}
    generation |= {f"{kind}_token_id": special[kind] for kind in ("bos", "pad") if kind in special}
    _write(folder / "generation_config.json", generation)


def special_ids(file: GGUFFile) -> dict[str, int]:
    """``{"bos_token_id": …, "eos_token_id": …, "pad_token_id": …}`` as far as the file names them, for config.json."""
    special = _special(file, _tokens(file))
    return {f"{kind}_token_id": special[kind] for kind in ("bos", "eos", "pad") if kind in special}


def _tokens(file: GGUFFile) -> list[str]:
    model = file.metadata.get("tokenizer.ggml.model")
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if model is None or not isinstance(tokens, list) or not tokens:
        raise ModelError(f"{file.path} carries no tokenizer", remedy="use a GGUF file of a whole model")
    if model != "gpt2":
        raise ModelError(
            f"{file.path} has a tokenizer of kind {model!r}, byte-level BPE ('gpt2') is what is read here",
            remedy="use the model's safetensors checkpoint, which has a tokenizer.json",
        )
    if len(set(tokens)) < len(tokens):
        raise ModelError(f"{file.path} names a token twice", remedy="convert the model to GGUF again")
    rows = file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else len(tokens)
    if len(tokens) > rows:
        raise ModelError(
            f"{file.path}: the tokenizer has {len(tokens)} tokens, the embedding {rows} rows",
            remedy="convert the model to GGUF again, with the tokenizer that came with its weights",
        )
    return tokens


def _field(file: GGUFFile, name: str, default: list[Any], count: int | None = None) -> list[Any]:
    found = file.metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(found, list) or (count is not None and len(found) != count):
        raise ModelError(f"{file.path}: tokenizer.ggml.{name} does not fit the tokens", remedy="convert it again")
    return found


def _special(file: GGUFFile, tokens: list[str]) -> dict[str, int]:
    special: dict[str, int] = {}
    for kind, key in _KINDS.items():
        i = file.metadata.get(f"tokenizer.ggml.{key}")
        if i is None:
            continue
        if not isinstance(i, int) or not 0 <= i < len(tokens):
            raise ModelError(
                f"{file.path}: the {kind} token {i} is none of the {len(tokens)} tokens",
                remedy="convert the model to GGUF again, with the tokenizer that came with its weights",
            )
        special[kind] = i
    if "eos" not in special:
        raise ModelError(
            f"{file.path} names no end token, so a chain would never stop",
            remedy="set tokenizer.ggml.eos_token_id with llama.cpp's gguf_set_metadata.py",
        )
    return special


def _backend(file: GGUFFile, tokens: list[str], kinds: list[int]) -> Backend:
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    name = str(file.metadata.get("tokenizer.ggml.pre"))
    if name not in SPLITS:
        raise ModelError(
            f"{file.path} splits text by the rules of {name!r}, which are not known here",
            remedy="use the model's safetensors checkpoint, which has a tokenizer.json",
        )
    merges = [_pair(file, merge) for merge in _field(file, "merges", [])]
    added = int(file.metadata.get(ADDED, 0))
    merges = merges[: len(merges) - added]
    vocabulary = {token: i for i, token in enumerate(tokens) if kinds[i] != UNUSED}
    try:
        model = models.BPE(vocabulary, merges, ignore_merges=added > 0 or name in _IGNORE_MERGES)
    except Exception as error:  # the Rust binding raises a bare Exception whatever is wrong
        raise ModelError(
            f"{file.path}: its merges do not fit its tokens: {error}",
            remedy="use the model's safetensors checkpoint, which has a tokenizer.json",
        ) from error
    backend = Backend(model)
    if SPLITS[name] == QWEN2:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(_split(SPLITS[name], Regex, pre_tokenizers))
    backend.decoder = decoders.ByteLevel()
    marked = ((token, kinds[i]) for i, token in enumerate(tokens) if kinds[i] in (CONTROL, USER_DEFINED))
    backend.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL) for token, kind in marked])
    return backend


def _split(rule: str, regex: Any, pre_tokenizers: Any) -> list[Any]:
    if rule in (GPT2, DIGITS):
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return [pre_tokenizers.Digits(individual_digits=True), words] if rule == DIGITS else [words]
    return [
        pre_tokenizers.Split(regex(rule), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def _pair(file: GGUFFile, merge: Any) -> tuple[str, str]:
    left, _, right = str(merge).partition(" ")
    if not left or not right:
        raise ModelError(f"{file.path}: {merge!r} is no merge of two tokens", remedy="convert the model to GGUF again")
    return left, right


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
