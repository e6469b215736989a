"""The tiny tokenizer: exactly 512 tokens, single digits, any UTF-8, the same in stock transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkfast.data.procedural import generate
from thinkfast.data.tokenizer import END, SPECIALS, VOCAB_SIZE, build, train_tokenizer
from thinkfast.data.words import LIQUIDS, NAMES, THINGS, VEHICLES
from thinkfast.errors import InputError
from thinkfast.models.tokenizer import Tokenizer

TINY = Path(__file__).parents[2] / "src/thinkfast/assets/tiny"
TOKENIZER = Tokenizer.from_dir(TINY)


def test_vocabulary_is_exact() -> None:
    vocab = json.loads((TINY / "tokenizer.json").read_text())["model"]["vocab"]
    assert TOKENIZER.vocab_size == len(vocab) == VOCAB_SIZE
    assert sorted(vocab.values()) == list(range(VOCAB_SIZE))
    assert [vocab[token] for token in SPECIALS] == [0, 1, 2, 3, 4]
    assert TOKENIZER.eos_ids == {vocab[END]}
    assert not [token for token in vocab if len(token) > 1 and re.search(r"\d", token)]


def test_task_words_are_single_tokens() -> None:
    for word in (*NAMES, *THINGS, *LIQUIDS, *VEHICLES, "times", "dollars", "boxed", "answer"):
        assert len(TOKENIZER.encode(word if word == "boxed" else f" {word}")) == 1, word
    words = pieces = 0
    for index in range(300):
        text = generate(index, "test").solution or ""
        words += len(re.findall(r" ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\d| (?=\d)", text))
        pieces += len(TOKENIZER.encode(text))
    assert pieces <= 1.01 * words


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    if not any(special in text for special in SPECIALS):
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.integers(0, 10**12))
@settings(max_examples=50, deadline=None)
def test_digits_stand_alone(number: int) -> None:
    assert len(TOKENIZER.encode(str(number))) == len(str(number))


def test_special_tokens_are_one_token_and_hidden_in_text() -> None:
    assert TOKENIZER.encode("".join(SPECIALS)) == [0, 1, 2, 3, 4]
    assert TOKENIZER.decode([1, 2, *TOKENIZER.encode(" Tom"), 3, 4]) == " Tom"


@pytest.mark.filterwarnings("ignore")
def test_stock_transformers_gives_the_same_ids(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    stock = AutoTokenizer.from_pretrained(TINY)
    stock.save_pretrained(tmp_path)
    for theirs in (stock, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(theirs) == VOCAB_SIZE
        assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 4, 0)
        for index in range(20):
            problem = generate(index, "test")
            turns = [
                {"role": "user", "content": problem.question},
                {"role": "assistant", "content": problem.solution or ""},
            ]
            prompt = theirs.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
            assert prompt == TOKENIZER.chat(problem.question)
            assert prompt[:2] == [1, 2]
            assert prompt[-1] == 3
            whole = theirs.apply_chat_template(turns, return_dict=False)
            assert whole == [*prompt, *TOKENIZER.encode(problem.solution or ""), 4]


def test_training_is_reproducible_and_writes_a_loadable_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_tokenizer(tmp_path / name, problems=1_500)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "a" / file).read_bytes() == (TINY / file).read_bytes()
    assert Tokenizer.from_dir(tmp_path / "a").vocab_size == VOCAB_SIZE


@pytest.mark.slow
def test_the_shipped_tokenizer_is_what_the_code_trains(tmp_path: Path) -> None:
    train_tokenizer(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()


def test_too_little_text_is_refused() -> None:
    with pytest.raises(InputError, match="not 512"):
        build(["Tom has 3 shells."])
