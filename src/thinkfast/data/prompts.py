"""How a problem is put to a model: the wording that its family was trained to answer in a form that can be read.

Why styles: an instruct model asked the bare question states its answer in any of a dozen ways, or not at all, and
what is then scored is the reader. The style is read off the chat template, which names the family; students carry
their teacher's template and so are asked as it was. Training text and evaluation come through here alike.

Usage: ``prompt_tokens(tokenizer, problem.question)``; ``prompt_tokens(tokenizer, question, style="plain")``.
Sources of the wordings: Qwen2.5-Math's README (``boxed``), the prompts that Meta published with Llama 3.1's
evaluations (``llama``), GSM8K's own layout (``completion``).
"""

from __future__ import annotations

from typing import Literal, get_args

from thinkfast.errors import InputError
from thinkfast.models.tokenizer import Tokenizer

Style = Literal["auto", "plain", "boxed", "llama", "completion"]
STYLES = get_args(Style)

_WORDINGS = {
    "plain": "{question}",
    "boxed": "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
    "llama": """Solve the following math problem efficiently and clearly:

- For simple problems (2 steps or fewer):
Provide a concise solution with minimal explanation.

- For complex problems (3 steps or more):
Use this step-by-step format:

## Step 1: [Concise description]
[Brief explanation and calculations]

## Step 2: [Concise description]
[Brief explanation and calculations]

...

Regardless of the approach, always conclude with:

Therefore, the final answer is: $\\boxed{{answer}}$. I hope it is correct.

Where [answer] is just the final number or expression that solves the problem.

Problem: {question}""",
    "completion": "Question: {question}\nAnswer:",
}
# A marker in the chat template, and the style of the instruct models that write it: ChatML is SmolLM's and Qwen's.
_MARKERS = {"<|im_start|>": "boxed", "<|start_header_id|>": "llama"}


def style_of(tokenizer: Tokenizer) -> str:
    """The style of a model's family: by its chat template; one that has none only completes text.

    A template of neither family (as that of ``tiny``) belongs to a model trained on bare questions.
    """
    template = tokenizer.chat_template
    if template is None:
        return "completion"
    return next((style for marker, style in _MARKERS.items() if marker in template), "plain")


def wording(question: str, style: str) -> str:
    """``question`` in the words of ``style``, "auto" excluded. Errors: InputError for an unknown style."""
    if style not in _WORDINGS:
        raise InputError(f"there is no prompt style {style!r}", remedy=f"use one of {', '.join(STYLES)}")
    return _WORDINGS[style].format(question=question)


def prompt_tokens(tokenizer: Tokenizer, question: str, style: str = "auto") -> list[int]:
    """The tokens that ask ``question``, chat template included. Errors: InputError for an unknown style."""
    return tokenizer.chat(wording(question, style_of(tokenizer) if style == "auto" else style))
