from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from thinkfast.errors import ModelError
from thinkfast.models.chat import DATE, ChatTemplate, template_source
from thinkfast.models.loading import ASSETS, load_model
from thinkfast.models.tokenizer import Tokenizer

ASK = [{"role": "user", "content": "1 < 2 & 3?"}]
SHARED = [
    "{{ bos_token }}{% for m in messages %}{{ m | tojson }}\n{% endfor %}",
    "{% for m in messages %}\n  {% if m.role == 'x' %}{% continue %}{% endif %}\n  {{ m.content }}\n{% endfor %}",
    "{%- for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{%- endfor %}",
    "{%- for m in messages -%}  {%- generation -%}  {{ m.content }}  {%- endgeneration -%}  {%- endfor -%}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ missing }}",
    "{% if tools is defined and tools %}T{% endif %}{{ messages[0]['content'].strip() }}{{ add_generation_prompt }}",
]


@pytest.mark.parametrize("source", SHARED)
def test_rendered_as_transformers_does(source: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    found = ChatTemplate(source, {"bos_token": "<s>"}).render(ASK)
    (want,), _ = utils.render_jinja_template([ASK], chat_template=source, add_generation_prompt=True, bos_token="<s>")
    assert found == want


def test_the_date_stands_still() -> None:
    source = "{{ strftime_now('%d %b %Y') }}"
    assert ChatTemplate(source, {}).render(ASK) == "26 Jul 2024" == DATE.strftime("%d %b %Y")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for %}", "the chat template fails"),
        ("{{ raise_exception('no user turn') }}", "no user turn"),
        ("{{ messages[7].content }}", "the chat template fails"),
        ("{{ ''.__class__.__mro__ }}", "the chat template fails"),
        ("{{ messages.append(1) }}", "the chat template fails"),
        ("{{ 1 / 0 }}", "the chat template fails"),
    ],
)
def test_a_template_that_fails_is_the_checkpoints_fault(source: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        ChatTemplate(source, {}).render(ASK)


def test_one_of_several_templates() -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert template_source(named) == "D"
    assert template_source(named[:1]) is None
    assert template_source("x") == "x"
    assert template_source(None) is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in (path for path in (ASSETS / "tiny").iterdir() if path.is_file()):
        shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


def change(path: Path, **changes: Any) -> None:
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not ...}))


def without_token(folder: Path, text: str) -> None:
    """Take one added token out of tokenizer.json, as a careless conversion does."""
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != text]
    # The id stays taken, so that nothing else moves.
    data["model"]["vocab"] = {("lost" if name == text else name): i for name, i in data["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<|bos|>", r"the bos token '<\|bos\|>'"),
        ("<|pad|>", r"the pad token '<\|pad\|>'"),
        ("<|end|>", r"the end token '<\|end\|>'"),
        ("<|user|>", r"the chat template writes '<\|user\|>', which is no token"),
        ("<|assistant|>", r"the chat template writes '<\|assistant\|>', which is no token"),
    ],
)
def test_a_tokenizer_that_lost_a_special_token(text: str, said: str, folder: Path) -> None:
    without_token(folder, text)
    with pytest.raises(ModelError, match=said) as caught:
        load_model(folder)
    assert caught.value.remedy


def test_an_end_that_is_no_token(folder: Path) -> None:
    change(folder / "config.json", eos_token_id=5000)
    with pytest.raises(ModelError, match="the end token 5000"):
        load_model(folder)


def test_several_ends_and_none(folder: Path) -> None:
    change(folder / "config.json", eos_token_id=[4, 0])
    assert Tokenizer.from_dir(folder).eos_ids == {4, 0}


def test_a_token_with_an_id_beyond_the_embedding(folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"].append({**data["added_tokens"][-1], "id": 512, "content": "<|new|>"})
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ModelError, match="the tokenizer has 513 tokens, the embedding 512 rows"):
        load_model(folder)
