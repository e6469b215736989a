"""Reward models of random weights, saved locally in the form that a hub would give."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from thinkfast.engine.request import Chain
from thinkfast.errors import InputError, ModelError
from thinkfast.judge.grader import checked
from thinkfast.judge.reward import Job, OutcomeReward, ProcessReward

WORDS = ["<pad>", "<end>", "<unk>", "<user>", "<assistant>", "+", "-", "two", "and", "is", "four", "five", "so", "step"]
CHAT = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tokenizer(words: list[str] = WORDS, chat: str | None = CHAT) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<end>", pad_token="<pad>")
    fast.chat_template = chat
    return fast


def save(folder: Path, kind: str, labels: int = 1, **changes: Any) -> Path:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        num_labels=labels,
        pad_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    model.save_pretrained(folder)
    tokenizer(**changes).save_pretrained(folder)
    return folder


def job(text: str, index: int = 0) -> Job:
    chain = Chain("7/0", index, (5, 6), text, -1.0, None, "stop", 0.5, 3)
    return Job("two and two", (1, 2), chain)


@pytest.mark.parametrize("labels", [1, 2])
def test_an_outcome_model_scores_a_batch_as_one_by_one(tmp_path: Path, labels: int) -> None:
    reward = OutcomeReward.load(save(tmp_path, "LlamaForSequenceClassification", labels))
    jobs = [job("so four"), job("two and two is five so five"), job("is")]
    scores = reward.score(jobs)
    assert all(0 < score < 1 for score in scores)
    assert len(set(scores)) == 3
    alone = [reward.score([each])[0] for each in jobs]
    assert scores == pytest.approx(alone, abs=1e-5)
    ids = reward.tokenizer.apply_chat_template(
        [{"role": "user", "content": "two and two"}, {"role": "assistant", "content": "so four"}], return_dict=False
    )
    logits = reward.model(torch.tensor([ids])).logits[0].detach()
    by_hand = logits[0].sigmoid() if labels == 1 else logits.softmax(-1)[1]
    assert scores[0] == pytest.approx(float(by_hand), abs=1e-5)
    assert len(reward.score([job("two " * 300)])) == 1  # cut to its positions


def test_a_process_model_scores_every_step_as_step_by_step(tmp_path: Path) -> None:
    """One pass over the chain against the published way: a pass per step, the logits before the mark."""
    reward = ProcessReward.load(save(tmp_path, "LlamaForCausalLM"))
    text = "two and two\n\nstep is four\n\n\n\nso four"
    ((first, second, third),) = reward.steps([job(text)])
    turns: list[dict[str, str]] = []
    expected = []
    for number, step in enumerate(("two and two", "step is four", "so four")):
        turns.append({"role": "user", "content": f"two and two {step}" if number == 0 else step})
        turns.append({"role": "assistant", "content": "+"})
        ids = reward.tokenizer.apply_chat_template(turns, return_dict=False)
        logits = reward.model(torch.tensor([ids])).logits[0, -3, [5, 6]].detach()  # before "+ <end>"
        expected.append(float(logits.softmax(-1)[0]))
    assert [first, second, third] == pytest.approx(expected, abs=1e-5)
    batch = reward.steps([job("so four"), job(text), job("")])
    assert batch[1] == pytest.approx(expected, abs=1e-5)
    for aggregate, value in (
        ("last", third),
        ("min", min(expected)),
        ("product", math.prod(expected)),
        ("mean", sum(expected) / 3),
    ):
        again = ProcessReward.load(tmp_path, aggregate=aggregate)  # type: ignore[arg-type]
        assert again.score([job(text)])[0] == pytest.approx(value, abs=1e-5)


def test_another_tokenizer_than_the_policys_is_fine_and_one_that_is_not_its_own_is_not(tmp_path: Path) -> None:
    """The policy of these jobs has tokens 5 and 6; the reward model reads their text with its own."""
    folder = save(tmp_path / "a", "LlamaForSequenceClassification", words=[*WORDS, *(f"more{i}" for i in range(9))])
    with pytest.raises(ModelError, match="tokenizer has 23 tokens and its embedding 14"):
        OutcomeReward.load(folder)
    words = ["plus" if word == "+" else word for word in WORDS]
    with pytest.raises(ModelError, match=r"'\+' is no token of its tokenizer"):
        ProcessReward.load(save(tmp_path / "b", "LlamaForCausalLM", words=words))
    with pytest.raises(ModelError, match="no chat template"):
        ProcessReward.load(save(tmp_path / "c", "LlamaForCausalLM", chat=None))
    swallowed = CHAT.replace("<assistant> {% endif %}", "<user> <assistant> {% endif %}")
    with pytest.raises(ModelError, match="does not put the mark"):
        ProcessReward.load(save(tmp_path / "d", "LlamaForCausalLM", chat=swallowed)).score([job("so four")])


def test_what_is_no_reward_model_is_told_of(tmp_path: Path) -> None:
    plain = save(tmp_path / "plain", "LlamaForCausalLM")
    with pytest.raises(ModelError, match=r"lacks weights: score\.weight"):
        OutcomeReward.load(plain)
    with pytest.raises(ModelError, match="has 3 labels"):
        OutcomeReward.load(save(tmp_path / "three", "LlamaForSequenceClassification", 3))
    with pytest.raises(ModelError, match="cannot load the reward model"):
        OutcomeReward.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="aggregate is 'sum'"):
        ProcessReward.load(plain, aggregate="sum")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="reads 64 tokens"):
        ProcessReward.load(plain).score([job("two " * 100)])


def test_a_score_that_is_nan_is_named(tmp_path: Path) -> None:
    reward = OutcomeReward.load(save(tmp_path, "LlamaForSequenceClassification"))
    with torch.no_grad():
        reward.model.score.weight[0, 0] = math.nan
    with pytest.raises(ModelError, match="scored chain 2 of '7/0' nan"):
        checked(reward, [job("so four", 2)])

    class Short:
        name = "short"

        def score(self, jobs: Any) -> list[float]:
            return []

    with pytest.raises(ModelError, match="0 scores for 1 chains"):
        checked(Short(), [job("so four")])
