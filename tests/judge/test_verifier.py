from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from thinkfast.data.problems import load_problems
from thinkfast.engine.llm import LLM
from thinkfast.engine.request import Chain, SamplingParams
from thinkfast.errors import InputError, ModelError
from thinkfast.judge.reward import Job
from thinkfast.judge.verifier import ABOUT, Head, Verifier, _kept, features, save_head
from thinkfast.models.loading import ASSETS, Loaded, load_model
from thinkfast.models.ragged import Ragged
from thinkfast.report.verify import VerifierRecipe, auc, fit_head, train_verifier

RECIPE = VerifierRecipe(model="tiny", log=Path(), steps=200)


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return load_model("tiny")


def job(loaded: Loaded, text: str, index: int = 0) -> Job:
    question = "Tom has 3 cards. Then Tom finds 4 more cards. How many cards does Tom have now?"
    return Job(
        question, tuple(loaded.tokenizer.chat(question)), Chain("0", index, (5,), text, -1.0, None, "stop", 0, 3)
    )


def test_features_are_those_of_the_full_forward(tiny: Loaded) -> None:
    prompt, chain = tuple(tiny.tokenizer.chat("Tom has 3 cards.")), tuple(tiny.tokenizer.encode("Tom has 3 + 4 = 7."))
    (found,) = features(tiny, [(prompt, chain)])
    tokens = torch.tensor([*prompt, *chain])
    hidden = tiny.model(tokens, Ragged(torch.tensor([len(tokens)])))
    width = tiny.spec.d_model
    torch.testing.assert_close(found[:width], hidden[-2])
    torch.testing.assert_close(found[width : 2 * width], hidden[len(prompt) - 1 : -1].mean(0))
    logprobs = tiny.model.logits(hidden).log_softmax(-1)
    said = [logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(chain)]
    assert found[-3] == pytest.approx(float(sum(said)) / len(chain), abs=1e-4)
    assert found[-2] == pytest.approx(float(min(said)), abs=1e-4)
    assert found[-1] == pytest.approx(math.log(len(chain)), abs=1e-5)


@pytest.mark.parametrize("name", ["tiny", "tiny-hybrid", "tiny-pure"])
@pytest.mark.parametrize("native", ["0", "1"])
def test_what_the_engine_keeps_is_what_a_pass_computes(name: str, native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for rows that have moved."""
    monkeypatch.setenv("THINKFAST_NATIVE", native)
    loaded = load_model(name)
    prompts = [tuple(loaded.tokenizer.chat(problem.question)) for problem in load_problems("tiny_val", 3)]
    llm = LLM(loaded, max_batch=3, max_len=300, keep_hidden=True)
    chains = [c for found in llm.generate(prompts, SamplingParams(n=3, max_tokens=150, seed=2)) for c in found]
    assert len({len(chain.tokens) for chain in chains}) > 2  # so rows ended at different steps and moved
    kept = torch.stack([cast(Tensor, _kept(chain)) for chain in chains])
    wanted = features(loaded, [(prompts[int(chain.request)], chain.tokens) for chain in chains])
    torch.testing.assert_close(kept, wanted, atol=2e-4, rtol=2e-4)
    (plain,) = LLM(loaded, max_batch=3, max_len=300).generate(prompts[:1], SamplingParams(max_tokens=5))
    assert plain[0].hidden is None
    assert _kept(plain[0]) is None


def test_a_pack_of_many_is_each_alone(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Tom has 7.", "First, 3 + 4 = 7. The answer is \\boxed{7}.", "No."]
    pairs = [((5, 6, 7), tuple(tiny.tokenizer.encode(text))) for text in texts]
    together = features(tiny, pairs)
    monkeypatch.setattr("thinkfast.judge.verifier.PACKED", 10)
    torch.testing.assert_close(features(tiny, pairs), together, atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match="without tokens"):
        features(tiny, [((5,), ())])


def test_a_head_learns_what_can_be_learned() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 12, generator=generator) * 3 + 5
    y = (x[:, 3] - x[:, 7] + 0.5 * torch.randn(600, generator=generator) > 0).float()
    head, losses = fit_head(x[:400], y[:400], x[400:], y[400:], RECIPE)
    assert auc(head(x[400:]), y[400:] > 0.5) > 0.95
    assert losses == sorted(losses, reverse=True)
    assert auc(torch.tensor([1.0, 1.0]), torch.tensor([True, False])) == 0.5
    assert auc(torch.tensor([1.0]), torch.tensor([True])) == 0.5


def test_it_belongs_to_one_model(tiny: Loaded, tmp_path: Path) -> None:
    head = Head(2 * tiny.spec.d_model + 3, 8)
    save_head(head, tmp_path, {"model": "tiny", "model_sha": tiny.sha})
    verifier = Verifier.load(tmp_path, tiny)
    scores = verifier.score([job(tiny, "3 + 4 = 7. \\boxed{7}"), job(tiny, "\\boxed{9}")])
    assert all(0 < score < 1 for score in scores)
    with pytest.raises(ModelError, match="reads the hidden states of 'tiny'"):
        Verifier.load(tmp_path, replace(tiny, name="other", sha="f" * 64))
    with pytest.raises(ModelError, match="there is no verifier"):
        Verifier.load(tmp_path / "nowhere", tiny)
    about = json.loads((tmp_path / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps(about | {"format": 1}))
    with pytest.raises(ModelError, match="other features"):
        Verifier.load(tmp_path, tiny)
    (tmp_path / ABOUT).write_text("{")
    with pytest.raises(ModelError, match="there is no verifier"):
        Verifier.load(tmp_path, tiny)


def test_the_one_that_is_shipped_prefers_right_chains(tiny: Loaded) -> None:
    verifier = Verifier.load(ASSETS / "tiny" / "verifier", tiny)
    text = (
        "We need the number of cards that Tom has at the end. At the start Tom has 3 cards. The changes are plus {a}. "
        "Tom gets {a} more, so Tom has 3 + {a} = {b} cards. The answer is \\boxed{{{b}}}."
    )
    right, wrong = verifier.score([job(tiny, text.format(a=4, b=7)), job(tiny, text.format(a=5, b=9))])
    assert right > wrong


def test_training_refuses_test_sets_and_logs_without_contrast(tmp_path: Path) -> None:
    from thinkfast.report.samples import SAMPLES, Row, row_dict

    def run(problems: str, correct: bool) -> VerifierRecipe:
        folder = tmp_path / f"{problems}{correct}"
        folder.mkdir()
        row = Row("tiny", "a", 0, 5, "\\boxed{7}", "7", "7", correct, "stop", -1.0, 0.1)
        (folder / SAMPLES).write_text(json.dumps(row_dict(row)) + "\n")
        whole = {
            "config": {"problems": problems},
            "systems": [{"name": "tiny", "model": "tiny"}],
            "problems": [{"id": "a", "question": "?", "answer": "7"}],
        }
        (folder / "eval.json").write_text(json.dumps(whole))
        return VerifierRecipe(model="tiny", log=folder)

    with pytest.raises(InputError, match="a test set"):
        train_verifier(run("tiny_test", True), tmp_path / "out")
    with pytest.raises(InputError, match="nothing to tell apart"):
        train_verifier(run("tiny_val", True), tmp_path / "out")
