from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from thinkfast.errors import InputError, ModelError
from thinkfast.models.loading import ASSETS
from thinkfast.models.tokenizer import Tokenizer

QUESTION = "Tom has 3 apples and buys 12 more. How many apples does he have?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copied = tmp_path / "tokenizer"
    copied.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(ASSETS / "tiny" / name, copied / name)
    return copied


def test_text_survives_and_special_tokens_are_left_out() -> None:
    tokenizer = Tokenizer.from_dir(ASSETS / "tiny")
    ids = tokenizer.encode(QUESTION)
    assert tokenizer.decode(ids) == QUESTION
    assert tokenizer.decode([*ids, *tokenizer.eos_ids]) == QUESTION
    assert tokenizer.encode_batch([QUESTION, "a"]) == [ids, tokenizer.encode("a")]
    assert max(ids) < tokenizer.vocab_size


def test_chat_is_what_transformers_renders(folder: Path) -> None:
    from transformers import AutoTokenizer

    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    theirs = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": QUESTION}]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ours = Tokenizer.from_dir(folder)
    assert ours.chat(QUESTION) == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(QUESTION) == theirs(QUESTION, add_special_tokens=False)["input_ids"]
    assert theirs.eos_token_id in ours.eos_ids
    assert ours.special_ids()["eos_token_id"] == theirs.eos_token_id


def test_without_a_template_the_question_is_the_prompt(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    tokenizer = Tokenizer.from_dir(folder)
    assert tokenizer.chat(QUESTION) == tokenizer.encode(QUESTION)


def test_end_tokens_of_all_files_count(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 11}))
    assert Tokenizer.from_dir(folder).eos_ids == Tokenizer.from_dir(ASSETS / "tiny").eos_ids | {7, 9, 11}


def test_an_end_token_outside_the_vocabulary_is_named(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": "<|nowhere|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="nowhere"):
        Tokenizer.from_dir(folder)


def test_special_tokens_may_be_objects(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["eos_token"] = {"content": config["eos_token"], "special": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.from_dir(folder).eos_ids == Tokenizer.from_dir(ASSETS / "tiny").eos_ids
    assert Tokenizer.from_dir(folder).chat(QUESTION) == Tokenizer.from_dir(ASSETS / "tiny").chat(QUESTION)


def test_half_a_character_is_refused() -> None:
    with pytest.raises(InputError, match="no Unicode at character 4"):
        Tokenizer.from_dir(ASSETS / "tiny").encode("2 + \udcff 2")
