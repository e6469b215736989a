"""A checkpoint's tokenizer.json as the vocabulary of a GGUF file: byte-level BPE, in the terms of llama.cpp.

llama.cpp knows a pre-tokenizer by a name, not by its pattern, so ours is recognised by its form, and a form without a
name is refused rather than written wrongly. Where tokenizer.json lets whole words skip the merges (``ignore_merges``)
and llama.cpp would not, merges are added that build those words, and counted, so that reading the file back
(``models/gguf/vocabulary.py``) gives the tokenizer it was made from.

Usage: ``vocabulary = read_vocabulary(folder, spec.vocab_size); add_vocabulary(writer, vocabulary)``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from thinkfast.errors import ModelError
from thinkfast.models.gguf.vocabulary import ADDED

# The split patterns of Llama 3's and Qwen2's tokenizer.json, which differ in how they group digits.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
NAMES = {
    ("digits", "words"): "smollm",
    ("words",): "gpt-2",
    (f"{_WORDS}\\p{{N}}{{1,3}}{_REST}", "bytes"): "llama-bpe",
    (f"{_WORDS}\\p{{N}}{_REST}", "bytes"): "qwen2",
}
IGNORES_MERGES = ("llama-bpe",)
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
Merge = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """tokens and kinds (llama.cpp's token types) by id; merges by rank; pre: llama.cpp's name of the pre-tokenizer.
    added: merges that tokenizer.json does not have. special: {"bos": id, "eos": id, "pad": id}, as far as known.
    """

    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[Merge, ...]
    pre: str
    added: int
    special: dict[str, int]
    chat_template: str | None


def read_vocabulary(folder: Path, size: int, special: dict[str, int], chat_template: str | None) -> Vocabulary:
    """The vocabulary of ``folder``/tokenizer.json, padded to the ``size`` rows of the embedding.

    Errors: ModelError where the tokenizer is not byte-level BPE or llama.cpp has no name for its pre-tokenizer.
    """
    data: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = data["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ModelError(
            f"the tokenizer is {model.get('type')}, only byte-level BPE can be written as GGUF",
            remedy="export with --to hf and convert that folder with llama.cpp's own converter",
        )
    pre = pre_tokenizer_name(data.get("pre_tokenizer"))
    tokens = {int(i): str(text) for text, i in model["vocab"].items()}
    kinds = dict.fromkeys(tokens, NORMAL)
    for token in data.get("added_tokens") or []:
        tokens[int(token["id"])] = str(token["content"])
        kinds[int(token["id"])] = CONTROL if token.get("special") else USER_DEFINED
    for i in range(size):
        if i not in tokens:
            tokens[i], kinds[i] = f"[PAD{i}]", UNUSED
    merges = [_pair(merge) for merge in model["merges"]]
    added: list[Merge] = []
    if model.get("ignore_merges") and pre not in IGNORES_MERGES:
        added = whole_words((tokens[i] for i in range(size) if kinds[i] == NORMAL), merges)
    ids = range(size)
    return Vocabulary(
        tuple(tokens[i] for i in ids),
        tuple(kinds[i] for i in ids),
        (*merges, *added),
        pre,
        len(added),
        special,
        chat_template,
    )


def pre_tokenizer_name(pre: dict[str, Any] | None) -> str:
    """llama.cpp's name for the ``pre_tokenizer`` of a tokenizer.json. Errors: ModelError where there is none."""
    form = tuple(_form(pre or {}))
    if form not in NAMES:
        raise ModelError(
            "llama.cpp has no name, or we do not know it, for this tokenizer's way of splitting text",
            remedy="export with --to hf and convert that folder with llama.cpp's own converter",
        )
    return NAMES[form]


def _form(step: dict[str, Any]) -> Iterable[str]:
    kind = step.get("type")
    if kind == "Sequence":
        for part in step["pretokenizers"]:
            yield from _form(part)
    elif kind == "Digits" and step.get("individual_digits"):
        yield "digits"
    elif kind == "ByteLevel" and not step.get("add_prefix_space"):
        yield "words" if step.get("use_regex", True) else "bytes"
    elif kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        yield str((step.get("pattern") or {}).get("Regex"))
    else:
        yield f"unknown {kind}"


def _pair(merge: str | Sequence[str]) -> Merge:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def whole_words(words: Iterable[str], merges: Sequence[Merge]) -> list[Merge]:
    """Merges that, ranked after ``merges``, make every one of ``words`` a single token.

    Later ranks never change what earlier ones build, so each word only has to be joined from the pieces that are left
    of it: from the right, so that no intermediate holds the marked space a word begins with; llama.cpp spells an
    intermediate that is no token byte by byte, and loses such a mark.
    """
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    added: list[Merge] = []
    for word in words:
        pieces = bpe(word, ranks)
        tail = pieces[-1]
        for piece in reversed(pieces[:-1]):
            if (piece, tail) not in ranks:
                ranks[piece, tail] = len(ranks)
                added.append((piece, tail))
            tail = piece + tail
    return added


def bpe(word: str, ranks: dict[Merge, int]) -> list[str]:
    """The pieces of ``word`` under merges by rank."""
    pieces = list(word)
    while len(pieces) > 1:
        pairs = [(ranks.get((a, b), len(ranks)), i) for i, (a, b) in enumerate(pairwise(pieces))]
        rank, at = min(pairs)
        if rank == len(ranks):
            break
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces


def add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Write ``vocabulary`` into a gguf.GGUFWriter."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.kinds))
    writer.add_token_merges([" ".join(merge) for merge in vocabulary.merges])
    if vocabulary.added:
        writer.add_uint32(ADDED, vocabulary.added)
    writer.add_add_bos_token(False)  # our chat templates write it themselves
    for kind, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id)):
        if kind in vocabulary.special:
            add(vocabulary.special[kind])
    if "pad" in vocabulary.special:
        writer.add_pad_token_id(vocabulary.special["pad"])
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
