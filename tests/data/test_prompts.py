"""A problem is asked in the words of the model's family; bare questions stay bare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from thinkfast.data.pool import encode
from thinkfast.data.prompts import STYLES, prompt_tokens, style_of, wording
from thinkfast.errors import InputError
from thinkfast.judge.answer import extract_answer
from thinkfast.models.loading import ASSETS
from thinkfast.models.tokenizer import Tokenizer

QUESTION = "What is {1, 2}? Braces and 50% stay."
TEMPLATES = {
    "boxed": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}",
    "llama": "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}{% endfor %}",
    "plain": "{% for m in messages %}{{ m.content }}{% endfor %}",
    "completion": None,
}


def tokenizer(folder: Path, template: str | None) -> Tokenizer:
    """The embedded teacher's, with another template and that one's markers as tokens."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ASSETS / "tiny" / name, folder / name)
    data = json.loads((folder / "tokenizer.json").read_text())
    first = 1 + max(*data["model"]["vocab"].values(), *(token["id"] for token in data["added_tokens"]))
    model = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    for i, marker in enumerate(("im_start", "im_end", "start_header_id", "end_header_id")):
        data["added_tokens"].append({"id": first + i, "content": f"<|{marker}|>", **model})
    (folder / "tokenizer.json").write_text(json.dumps(data))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return Tokenizer.from_dir(folder)


@pytest.mark.parametrize("style", TEMPLATES)
def test_the_template_names_the_family(style: str, tmp_path: Path) -> None:
    found = tokenizer(tmp_path, TEMPLATES[style])
    assert style_of(found) == style
    asked = prompt_tokens(found, QUESTION)
    assert asked == prompt_tokens(found, QUESTION, style) == found.chat(wording(QUESTION, style))
    # Training text asks as an evaluation does.
    assert encode(QUESTION, "So 3.", found, min(found.eos_ids)).tokens[: len(asked)] == tuple(asked)


def test_the_embedded_models_are_asked_the_bare_question() -> None:
    for name in ("tiny", "tiny-hybrid", "tiny-pure"):
        found = Tokenizer.from_dir(ASSETS / name)
        assert prompt_tokens(found, QUESTION) == found.chat(QUESTION)


def test_wordings_hold_the_question_and_ask_for_what_is_read() -> None:
    for style in STYLES[1:]:
        assert QUESTION in wording(QUESTION, style)
        assert "{question}" not in wording(QUESTION, style)
    assert wording(QUESTION, "plain") == QUESTION
    assert wording("1?", "boxed").endswith("put your final answer within \\boxed{}.")
    assert "$\\boxed{answer}$" in wording("1?", "llama")
    assert extract_answer("Therefore, the final answer is: $\\boxed{18}$. I hope it is correct.") == "18"


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(InputError, match="no prompt style 'shouted'") as caught:
        wording(QUESTION, "shouted")
    assert "boxed" in caught.value.remedy
