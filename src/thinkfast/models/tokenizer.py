"""Tokenizer: the checkpoint's own tokenizer.json and chat template, without importing transformers.

The `tokenizers` library does the encoding and Jinja2's sandbox renders the chat template exactly as transformers
does; importing transformers costs seconds that a command-line tool should not spend.

Usage: ``Tokenizer.from_dir("assets/tiny").chat("Tom has 3 apples …")``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from thinkfast.errors import InputError, ModelError
from thinkfast.models.chat import ChatTemplate, template_source

_MARKER = re.compile(r"<\|[^|<>\s]+\|>")  # how most models write a marker; others (<s>, [INST]) may be plain text


class Tokenizer:
    """Text to token ids and back, and a question to a prompt."""

    def __init__(self, path: Path, chat_template: str | None, config: dict[str, Any], eos_ids: frozenset[int]) -> None:
        from tokenizers import Tokenizer as Backend

        try:
            self._backend = Backend.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # the Rust binding raises a bare Exception whatever is wrong
            raise ModelError(
                f"cannot read {path / 'tokenizer.json'}: {error}", remedy="copy tokenizer.json from the original model"
            ) from error
        self.path = path
        self.eos_ids = eos_ids
        self.chat_template = chat_template
        self._config = config

    @classmethod
    def from_dir(cls, path: str | Path) -> Tokenizer:
        """Read tokenizer.json, tokenizer_config.json and the chat template of a checkpoint folder.

        Errors: ModelError where a file is missing, unreadable, or names a token that the vocabulary lacks.
        """
        folder = Path(path)
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(f"{folder} has no tokenizer.json", remedy="copy it from the original model")
        config = _read_json(folder / "tokenizer_config.json")
        template_file = folder / "chat_template.jinja"
        template = (
            template_file.read_text() if template_file.is_file() else template_source(config.get("chat_template"))
        )
        self = cls(folder, template, config, frozenset())
        self.eos_ids = frozenset(self._eos(folder, config))
        self._require_special_tokens()
        return self

    def _require_special_tokens(self) -> None:
        """Every token the checkpoint names must be one token here: else a prompt falls to pieces and nothing warns."""
        remedy = "copy tokenizer.json and tokenizer_config.json from one and the same model"
        for kind in ("bos", "pad", "unk"):
            token = _text(self._config.get(f"{kind}_token"))
            if token is not None and self._backend.token_to_id(token) is None:
                raise ModelError(f"the {kind} token {token!r} is not in {self.path}/tokenizer.json", remedy=remedy)
        if lost := [i for i in sorted(self.eos_ids) if self._backend.id_to_token(i) is None]:
            raise ModelError(f"the end token {lost[0]} is no token of {self.path}/tokenizer.json", remedy=remedy)
        if self._template is None:
            return
        for marker in _MARKER.findall(self._template.render([{"role": "user", "content": "1 + 1"}])):
            if len(self.encode(marker)) != 1:
                raise ModelError(
                    f"the chat template writes {marker!r}, which is no token of {self.path}/tokenizer.json",
                    remedy=remedy,
                )

    def require_fit(self, rows: int) -> None:
        """Raise ModelError where a token has no row among the ``rows`` of the embedding."""
        if self.vocab_size > rows:
            raise ModelError(
                f"{self.path}: the tokenizer has {self.vocab_size} tokens, the embedding {rows} rows",
                remedy="use the tokenizer that came with these weights",
            )

    def _eos(self, folder: Path, config: dict[str, Any]) -> list[int]:
        ids: list[int] = []
        for name in ("generation_config.json", "config.json"):
            found = _read_json(folder / name).get("eos_token_id")
            ids += found if isinstance(found, list) else [] if found is None else [found]
        if token := _text(config.get("eos_token")):
            token_id = self._backend.token_to_id(token)
            if token_id is None:
                raise ModelError(f"the end token {token!r} is not in {folder}/tokenizer.json", remedy="fix eos_token")
            ids.append(token_id)
        return ids

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; gaps between their ids count."""
        added = self._backend.get_added_tokens_decoder()
        return max(int(self._backend.get_vocab_size(with_added_tokens=True)), 1 + max(added, default=-1))

    def special_ids(self) -> dict[str, int]:
        """``{"bos_token_id": ..., ...}`` for the special tokens that the tokenizer names, as config.json wants them."""
        named = ((kind, _text(self._config.get(f"{kind}_token"))) for kind in ("bos", "eos", "pad"))
        ids = ((kind, self._backend.token_to_id(token)) for kind, token in named if token is not None)
        return {f"{kind}_token_id": int(token_id) for kind, token_id in ids if token_id is not None}

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; special tokens written in it are recognised, none are added.

        Errors: InputError where it holds half a character, as bytes that are no UTF-8 become.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text is no Unicode at character {error.start}: {text[max(0, error.start - 20) : error.end]!a}",
                remedy="give it as UTF-8",
            ) from error
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """``encode`` for many texts, on all cores."""
        return [list(e.ids) for e in self._backend.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: list[int] | tuple[int, ...]) -> str:
        """Text of ``ids`` with special tokens left out."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """``decode`` for many, on all cores."""
        return [str(text) for text in self._backend.decode_batch([list(ids) for ids in rows], skip_special_tokens=True)]

    def chat(self, question: str) -> list[int]:
        """The prompt for a question: chat template with the generation prompt; plain text where there is none."""
        if self._template is None:
            return self.encode(question)
        return self.encode(self._template.render([{"role": "user", "content": question}]))

    @cached_property
    def _template(self) -> ChatTemplate | None:
        if self.chat_template is None:
            return None
        tokens = {k: _text(v) or "" for k, v in self._config.items() if k.endswith("_token")}
        return ChatTemplate(self.chat_template, tokens)


def _text(token: Any) -> str | None:
    """A special token as text: configs store it bare or as an AddedToken dict."""
    return str(token["content"]) if isinstance(token, dict) else token if isinstance(token, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}", remedy="download the file again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no JSON object", remedy="download the file again")
    return found
