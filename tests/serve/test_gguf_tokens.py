"""The vocabulary of a GGUF file says what tokenizer.json says, or the export refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkfast.data.problems import load_problems
from thinkfast.errors import ModelError
from thinkfast.models.loading import ASSETS
from thinkfast.models.tokenizer import Tokenizer
from thinkfast.serve.gguf_tokens import (
    CONTROL,
    NORMAL,
    UNUSED,
    Vocabulary,
    bpe,
    pre_tokenizer_name,
    read_vocabulary,
    whole_words,
)

TINY = ASSETS / "tiny"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
WORDS = BYTES | {"use_regex": True}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


@pytest.mark.parametrize(
    ("pre", "name"),
    [
        (WORDS, "gpt-2"),
        (sequence({"type": "Digits", "individual_digits": True}, WORDS), "smollm"),
        (sequence(split(LLAMA3), BYTES), "llama-bpe"),
        (sequence(split(LLAMA3.replace("{1,3}", "")), BYTES), "qwen2"),
    ],
)
def test_known_forms_have_names(pre: dict[str, Any], name: str) -> None:
    assert pre_tokenizer_name(pre) == name


@pytest.mark.parametrize(
    "pre",
    [
        None,
        {"type": "Whitespace"},
        WORDS | {"add_prefix_space": True},
        sequence({"type": "Digits", "individual_digits": False}, WORDS),
        sequence(split(LLAMA3 + "x"), BYTES),
        sequence(split(LLAMA3) | {"behavior": "Removed"}, BYTES),
        sequence(split(LLAMA3), WORDS),
    ],
    ids=str,
)
def test_other_forms_are_refused_with_a_remedy(pre: dict[str, Any] | None) -> None:
    with pytest.raises(ModelError, match="way of splitting") as caught:
        pre_tokenizer_name(pre)
    assert "--to hf" in caught.value.remedy


def test_the_embedded_tokenizer() -> None:
    vocabulary = read_vocabulary(TINY, 516, {"eos": 4}, "template")
    tokenizer = Tokenizer.from_dir(TINY)
    assert vocabulary.pre == "smollm"
    assert len(vocabulary.tokens) == len(vocabulary.kinds) == 516
    assert vocabulary.tokens[:5] == ("<|pad|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|end|>")
    assert vocabulary.kinds[:6] == (CONTROL,) * 5 + (NORMAL,)
    assert vocabulary.tokens[512:] == ("[PAD512]", "[PAD513]", "[PAD514]", "[PAD515]")
    assert vocabulary.kinds[512:] == (UNUSED,) * 4
    # Its words skip the merges; without ignore_merges, every one must still come out whole.
    ranks = {merge: rank for rank, merge in enumerate(vocabulary.merges)}
    words = [t for t, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if kind == NORMAL]
    assert vocabulary.added > 100
    assert all(bpe(word, ranks) == [word] for word in words)
    for problem in load_problems("tiny_test", limit=20):
        assert as_llama_cpp(problem.question, vocabulary) == tokenizer.encode(problem.question)


def as_llama_cpp(text: str, vocabulary: Vocabulary) -> list[int]:
    """Pieces by the merges alone; a piece that is no token is spelt out."""
    from tokenizers import Tokenizer as Backend

    splitter = Backend.from_file(str(TINY / "tokenizer.json")).pre_tokenizer
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    ranks = {merge: rank for rank, merge in enumerate(vocabulary.merges)}
    pieces = [p for word, _ in splitter.pre_tokenize_str(text) for p in bpe(word, ranks)]
    return [i for p in pieces for i in ([ids[p]] if p in ids else [ids[c] for c in p])]


def test_merges_may_be_pairs_or_text(tmp_path: Path) -> None:
    data = json.loads((TINY / "tokenizer.json").read_text())
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert read_vocabulary(tmp_path, 512, {}, None) == read_vocabulary(TINY, 512, {}, None)


@pytest.mark.parametrize("change", [{"type": "Unigram"}, {"byte_fallback": True}])
def test_other_models_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    data = json.loads((TINY / "tokenizer.json").read_text())
    data["model"] |= change
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ModelError, match="byte-level BPE"):
        read_vocabulary(tmp_path, 512, {}, None)


WORD = st.text(alphabet="abĠ", min_size=1, max_size=6)
MERGE = st.tuples(*[st.text(alphabet="abĠ", min_size=1, max_size=2)] * 2)


@given(words=st.lists(WORD, max_size=8), merges=st.lists(MERGE, max_size=5, unique=True))
def test_added_merges_never_change_what_the_old_ones_build_first(
    words: list[str], merges: list[tuple[str, str]]
) -> None:
    added = whole_words(words, merges)
    assert not set(added) & set(merges)
    old = {merge: rank for rank, merge in enumerate(merges)}
    both = {merge: rank for rank, merge in enumerate([*merges, *added])}
    for word in words:
        # The pieces of the old merges are only ever joined, never cut otherwise.
        ends = {len("".join(bpe(word, both)[:i])) for i in range(len(bpe(word, both)) + 1)}
        assert ends <= {len("".join(bpe(word, old)[:i])) for i in range(len(bpe(word, old)) + 1)}
