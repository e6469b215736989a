"""The tiny tokenizer: byte-level BPE with exactly 512 tokens, digits always alone, task words whole.

Why: with whole words a chain of thought is 100-300 tokens and a 4-layer model can attend from word to word; with single
digits it can copy and compute numbers place by place. As in Llama 3 (`ignore_merges`), a piece that is in the
vocabulary is one token without any intermediate merges, so no slot is spent on word fragments; other text falls
back to the merges and in the end to single bytes, so any UTF-8 text encodes and decodes to itself.

Usage: `train_tokenizer("src/thinkfast/assets/tiny")` or `python -m thinkfast.data.tokenizer DIR`
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinkfast.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from tokenizers.pre_tokenizers import Sequence as PreTokenizer

VOCAB_SIZE = 512
PAD, BOS, USER, ASSISTANT, END = "<|pad|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIALS = (PAD, BOS, USER, ASSISTANT, END)
TRAIN_PROBLEMS = 20_000
RARE = 20  # a piece seen less often than this in TRAIN_PROBLEMS problems is not a task word

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _pre_tokenizer() -> PreTokenizer:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)])


def _merges(texts: list[str]) -> list[tuple[str, str]]:
    """Ordered merges of an ordinary BPE training run on the texts."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    backend = Backend(BPE())
    backend.pre_tokenizer = _pre_tokenizer()
    trainer = BpeTrainer(vocab_size=VOCAB_SIZE, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]


def build(texts: Iterable[str]) -> Backend:
    """A tokenizer of VOCAB_SIZE tokens: specials, 256 bytes, frequent pieces whole, then merges while there is room.

    Raises InputError when the texts are too few to fill the vocabulary.
    """
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    kept = list(texts)
    split = _pre_tokenizer()
    counts = Counter(piece for text in kept for piece, _ in split.pre_tokenize_str(text))
    frequent = sorted((-n, piece) for piece, n in counts.items() if n >= RARE and len(piece) > 1)
    vocab = {token: i for i, token in enumerate((*SPECIALS, *sorted(ByteLevel.alphabet())))}
    for _, piece in frequent[: VOCAB_SIZE - len(vocab)]:
        vocab[piece] = len(vocab)
    merges: list[tuple[str, str]] = []
    for left, right in _merges(kept):
        if left + right not in vocab and len(vocab) == VOCAB_SIZE:
            break
        vocab.setdefault(left + right, len(vocab))
        merges.append((left, right))
    if len(vocab) != VOCAB_SIZE:
        raise InputError(
            f"the training text gives {len(vocab)} tokens, not {VOCAB_SIZE}", remedy="train on more or richer text"
        )
    backend = Backend(BPE(vocab=vocab, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = _pre_tokenizer()
    backend.decoder = ByteLevelDecoder()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return backend


def train_tokenizer(out_dir: str | Path, problems: int = TRAIN_PROBLEMS) -> None:
    """Train on procedural train problems and write tokenizer.json, tokenizer_config.json, chat_template.jinja.

    Reproducible: the same code writes the same bytes. Raises InputError when `problems` is too small.
    """
    from thinkfast.data.procedural import generate

    texts: list[str] = []
    for index in range(problems):
        problem = generate(index, "train")
        texts += (problem.question, problem.solution or "")
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    build(texts).save(str(folder / "tokenizer.json"), pretty=True)
    config: dict[str, Any] = {
        "bos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": 1024,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


if __name__ == "__main__":
    train_tokenizer(sys.argv[1])
