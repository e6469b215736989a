"""Other programs in other interpreters: what they say is held against ours, and a failure says its last words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from thinkfast.errors import InputError, ParityError
from thinkfast.serve.parity import peers
from thinkfast.serve.parity.conditioning import Noise
from thinkfast.serve.parity.peers import LLAMA_CPP, VLLM, against_peer, find_python
from thinkfast.serve.parity.sample import Greedy, draw_sample, our_logprobs
from thinkfast.serve.parity.scripts import llama_peer, vllm_peer

PROMPTS = [[7, 9, 11, 200, 31, 6], [5, 6, 7]]
TEXTS = ["There are 12 shells.", "Mia has 7."]


def interpreter(tmp_path: Path, body: str) -> Path:
    """An "interpreter" that runs ``body`` as Python, whatever script it is told to run; job and answer are argv."""
    program = tmp_path / "program.py"
    program.write_text(f"import json, sys\nscript, job, answer = sys.argv[1:4]\njob = json.load(open(job))\n{body}")
    shell = tmp_path / "python"
    shell.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{program}" "$@"\n')
    shell.chmod(0o755)
    return shell


def answering(tmp_path: Path, answer: dict[str, Any]) -> Path:
    return interpreter(tmp_path, f"json.dump({answer!r}, open(answer, 'w'))\n")


@pytest.fixture
def told(make: Any) -> tuple[Any, list[Greedy], dict[str, Any]]:
    loaded = make("hybrid")
    chains = draw_sample(loaded, PROMPTS, 8)
    said = [{"tokens": list(c.tokens), "logprobs": our_logprobs(loaded, c.sequence).tolist()} for c in chains]
    texts = [loaded.tokenizer.encode(text) for text in TEXTS]
    return loaded, chains, {"version": "9.9", "sequences": said, "texts": texts}


def test_a_peer_that_agrees(told: Any, tmp_path: Path) -> None:
    loaded, chains, answer = told
    checks = against_peer(LLAMA_CPP, answering(tmp_path, answer), tmp_path / "m", loaded, chains, TEXTS, Noise(loaded))
    assert [(c.name, c.status) for c in checks] == [
        ("log-probabilities", "passed"),
        ("greedy tokens", "passed"),
        ("tokenizer", "passed"),
    ]
    assert checks[0].against == "llama.cpp 9.9"
    assert "23 tokens of 2 sequences" in checks[0].detail


def test_each_difference_breaks_its_row(told: Any, tmp_path: Path) -> None:
    loaded, chains, answer = told
    answer["sequences"][0]["logprobs"][3] += 0.01
    answer["texts"][1] = [1, 2]
    other = (chains[1].tokens[5] + 1) % 512
    sequence = [*chains[1].prompt, *chains[1].tokens[:5], other, *chains[1].tokens[6:]]
    answer["sequences"][1] = {"tokens": sequence[3:], "logprobs": our_logprobs(loaded, sequence).tolist()}
    logprobs, tokens, texts = against_peer(
        VLLM, answering(tmp_path, answer), tmp_path / "m", loaded, chains, TEXTS, Noise(loaded)
    )
    assert (logprobs.status, tokens.status, texts.status) == ("broken", "broken", "broken")
    assert (tokens.value, texts.value) == (1.0, 1.0)
    assert "worst at token 5" in tokens.detail


def test_the_job_is_plain_and_no_path_of_ours_leaks(told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, chains, answer = told
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    body = f"""
import os
assert script.endswith('scripts/vllm_peer.py'), script
assert job['sequences'][1] == {{'prompt': [5, 6, 7], 'new': 8}}, job
assert job['model'] == {str(tmp_path / "m")!r}
assert 'PYTHONPATH' not in os.environ
json.dump({answer!r}, open(answer, 'w'))
"""
    assert (
        against_peer(VLLM, interpreter(tmp_path, body), tmp_path / "m", loaded, chains, (), Noise(loaded))[0].status
        == "passed"
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("print('loading')\nsys.exit('the model is broken')", r"failed \(1\): the model is broken"),
        ("pass", r"failed \(0\): it said nothing"),
        ("import os\nos.abort()", "failed"),
    ],
)
def test_a_failure_says_its_last_words(body: str, words: str, told: Any, tmp_path: Path) -> None:
    loaded, chains, _ = told
    with pytest.raises(ParityError, match=words):
        against_peer(LLAMA_CPP, interpreter(tmp_path, body), tmp_path / "m", loaded, chains, (), Noise(loaded))


def test_a_peer_that_hangs_is_ended(told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, chains, _ = told
    monkeypatch.setattr(peers, "TIMEOUT", 0.5)
    with pytest.raises(ParityError, match="no answer after"):
        against_peer(
            VLLM,
            interpreter(tmp_path, "import time\ntime.sleep(60)"),
            tmp_path / "m",
            loaded,
            chains,
            (),
            Noise(loaded),
        )


def test_which_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no Python") as caught:
        find_python(VLLM, tmp_path / "python")
    assert "--vllm-python" in caught.value.remedy
    assert find_python(VLLM, Path(sys.executable)) == Path(sys.executable)
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    assert find_python(LLAMA_CPP, None) is None
    monkeypatch.setattr(peers, "find_spec", lambda name: name == "vllm")
    assert find_python(VLLM, None) == Path(sys.executable)


class FakeLlama:
    """A model whose logits favour the token after the last one."""

    def __init__(self, *_: Any, **options: Any) -> None:
        self.scores = np.zeros((options["n_ctx"], 16), dtype=np.float32)
        self.n_tokens = 0

    def reset(self) -> None:
        self.n_tokens = 0

    def eval(self, tokens: list[int]) -> None:
        for token in tokens:
            self.scores[self.n_tokens] = 0
            self.scores[self.n_tokens, (token + 1) % 16] = 2
            self.n_tokens += 1

    def tokenize(self, text: bytes, **_: Any) -> list[int]:
        return list(text)


def test_the_llama_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=FakeLlama, __version__="0"))
    job, answer = tmp_path / "job.json", tmp_path / "answer.json"
    sequences = [{"prompt": [1, 2, 9], "new": 3}, {"prompt": [4], "new": 2}]
    job.write_text(json.dumps({"model": "m", "sequences": sequences, "texts": ["ab"], "threads": 1}))
    llama_peer.main(str(job), str(answer))
    found = json.loads(answer.read_text())
    assert [s["tokens"] for s in found["sequences"]] == [[10, 11, 12], [5, 6]]
    assert found["texts"] == [[97, 98]]
    logits = torch.zeros(16)
    logits[1] = 2
    likely, other = logits.log_softmax(-1)[1].item(), logits.log_softmax(-1)[0].item()
    assert found["sequences"][0]["logprobs"] == pytest.approx([likely, other, likely, likely, likely])


def test_the_vllm_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def entry(token: int, logprob: float) -> dict[int, Any]:
        return {token: SimpleNamespace(logprob=logprob), 99: SimpleNamespace(logprob=-9.0)}

    def generate(prompts: list[Any], params: list[Any], use_tqdm: bool) -> list[Any]:
        return [
            SimpleNamespace(
                prompt_token_ids=p["prompt_token_ids"],
                prompt_logprobs=[None, *(entry(t, -float(t)) for t in p["prompt_token_ids"][1:])],
                outputs=[SimpleNamespace(token_ids=(3, 4), logprobs=[entry(3, -0.3), entry(4, -0.4)])],
            )
            for p in prompts
        ]

    fake = SimpleNamespace(
        LLM=lambda *a, **o: SimpleNamespace(generate=generate), SamplingParams=dict, __version__="0.32.0"
    )
    monkeypatch.setitem(sys.modules, "vllm", fake)
    job, answer = tmp_path / "job.json", tmp_path / "answer.json"
    job.write_text(json.dumps({"model": "m", "sequences": [{"prompt": [1, 2], "new": 2}], "texts": [], "threads": 1}))
    vllm_peer.main(str(job), str(answer))
    assert json.loads(answer.read_text()) == {
        "version": "0.32.0",
        "sequences": [{"tokens": [3, 4], "logprobs": [-2.0, -0.3, -0.4]}],
        "texts": [],
    }
