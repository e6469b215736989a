from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from thinkfast.data.problems import load_problems
from thinkfast.engine.llm import LLM
from thinkfast.engine.request import SamplingParams
from thinkfast.errors import InputError, ModelError
from thinkfast.models.ragged import Ragged
from thinkfast.serve.lm_eval import Harness, adapter


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny", max_batch=8, max_len=400)


def test_generation_is_the_engines_and_until_stops_it(llm: LLM) -> None:
    questions = [problem.question for problem in load_problems("tiny_val", 3)]
    harness = Harness(llm, chat=True, max_tokens=300)
    found = harness.generate([(q, {"until": ["\n\n"], "do_sample": False}) for q in questions])
    greedy = llm.generate(questions, SamplingParams(temperature=0, max_tokens=300))
    assert found == [chains[0].text for chains in greedy]
    short = harness.generate([(questions[0], {"until": [" the"], "max_gen_toks": 40, "temperature": 0.0})])
    assert " the" not in short[0]
    assert short[0] == found[0][: found[0].index(" the")]
    with pytest.raises(InputError, match="asks for 'num_beams'"):
        harness.generate([(questions[0], {"num_beams": 4})])


def test_likelihoods_are_those_of_the_full_forward(llm: LLM) -> None:
    harness = Harness(llm, chat=False, max_tokens=50)
    asked = [("Tom has 3", " cards. Tom gets 4 more."), ("", "Tom"), ("Tom has 3 cards.", " So")]
    found = harness.loglikelihood(asked)
    for (context, text), (score, greedy) in zip(asked, found, strict=True):
        first = harness._tokens(context)
        more = llm.tokenizer.encode(text)
        tokens = torch.tensor([*first, *more])
        hidden = llm.loaded.model(tokens, Ragged(torch.tensor([len(tokens)])))
        logprobs = llm.loaded.model.logits(hidden).log_softmax(-1)[len(first) - 1 : -1]
        truth = sum(float(logprobs[i, token]) for i, token in enumerate(more))
        assert score == pytest.approx(truth, abs=1e-3)
        assert greedy == (logprobs.argmax(-1).tolist() == more)


def test_without_the_harness_it_says_how_to_get_it(llm: LLM) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        with pytest.raises(ModelError, match="lm-evaluation-harness cannot be imported"):
            adapter(llm)
    else:
        lm = adapter(llm)
        request = SimpleNamespace(args=("Tom has 3 cards. How many?", {"until": ["\n"], "max_gen_toks": 5}))
        assert isinstance(lm.generate_until([request])[0], str)
