"""Chat templates: a question to the text of a prompt, as transformers renders it, without importing transformers.

One difference is meant: ``strftime_now`` gives Llama's own default date, not today's, because a run that is resumed
tomorrow must ask the same.

Usage: ``ChatTemplate(source, {"bos_token": "<s>"}).render([{"role": "user", "content": "…"}])``.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from thinkfast.errors import ModelError

DATE = datetime.date(2024, 7, 26)
# transformers marks the assistant's text with this block; for us it is no more than its content.
_GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


class ChatTemplate:
    """A compiled template in Jinja's sandbox, with the names that the templates of published models rely on."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> NoReturn:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson  # Jinja's own escapes <, > and & for HTML
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = DATE.strftime
        self._tokens = dict(tokens)
        source = _GENERATION.sub(lambda m: f"{m[1]}{'endif' if m[2] else 'if true'}{m[3]}", source)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise _error(error) from error

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that makes the model answer ``messages``. Errors: ModelError where the template fails."""
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=True, **self._tokens)
        except Exception as error:
            # Whatever a template does wrong (it is a program) is the checkpoint's fault, never a traceback of ours.
            raise _error(error) from error


def template_source(found: Any) -> str | None:
    """The template in a tokenizer_config.json's ``chat_template``: a string, or the default of a list of named ones."""
    if isinstance(found, list):
        named = {entry["name"]: entry["template"] for entry in found if isinstance(entry, dict)}
        return template_source(named.get("default"))
    return found if isinstance(found, str) else None


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _error(error: Exception) -> ModelError:
    return ModelError(
        f"the chat template fails: {error}",
        remedy="take chat_template.jinja (or chat_template in tokenizer_config.json) from the original model",
    )
