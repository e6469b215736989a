"""The parity run: every comparison that this machine allows, in order, with a reason for each that it does not.

Usage: ``report = run_parity(load_model("tiny"), Plan(quick=True))``.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from thinkfast.data.problems import load_problems
from thinkfast.data.prompts import prompt_tokens
from thinkfast.errors import InputError, ModelError, ParityError
from thinkfast.models.checkpoint import save_checkpoint
from thinkfast.models.loading import Loaded
from thinkfast.provenance import provenance
from thinkfast.serve.gguf_model import write_gguf
from thinkfast.serve.parity import own, peers
from thinkfast.serve.parity.conditioning import Noise
from thinkfast.serve.parity.drift import STEPS, drift
from thinkfast.serve.parity.hf import NAME, against_transformers
from thinkfast.serve.parity.report import Check, Curve, ParityReport
from thinkfast.serve.parity.sample import Greedy, draw_sample

OnCheck = Callable[[Check], None]
Group = Callable[[], list[Check]]
PROGRAMS = ("transformers", "vllm", "llama.cpp")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. prompts x new tokens for comparisons of logits and greedy tokens, the first ``few`` prompts where
    whole chains are sampled or another program runs; steps of drift. problems: where the prompts come from.
    """

    quick: bool = False
    problems: str = "tiny_test"
    prompts: int = 20
    new: int = 64
    few: int = 5
    steps: int = STEPS
    vllm_python: Path | None = None
    llama_python: Path | None = None

    @classmethod
    def of(cls, quick: bool, problems: str, vllm_python: Path | None = None, llama_python: Path | None = None) -> Plan:
        """The full plan, or with ``quick`` one of seconds."""
        full = cls(quick, problems, vllm_python=vllm_python, llama_python=llama_python)
        return replace(full, prompts=8, new=16, few=2, steps=100) if quick else full


def run_parity(loaded: Loaded, plan: Plan, on_check: OnCheck | None = None) -> ParityReport:
    """Run every comparison on ``loaded``, which must be in fp32; ``on_check`` sees each row as it is there.

    Errors: InputError where the model is in another dtype, or an interpreter that was named is none.
    """
    if loaded.model.head_weight.dtype != torch.float32:
        raise InputError("parity is measured in fp32", remedy="load the model with dtype=torch.float32")
    for peer, python in ((peers.VLLM, plan.vllm_python), (peers.LLAMA_CPP, plan.llama_python)):
        peers.find_python(peer, python)
    checks: list[Check] = []
    curve: list[Curve] = []
    with stock_folder(loaded) as folder:
        for group in _groups(loaded, folder, plan, curve.append):
            began = time.monotonic()
            found = group()
            each = (time.monotonic() - began) / len(found)
            for check in found:
                checks.append(replace(check, seconds=round(each, 3)))
                if on_check is not None:
                    on_check(checks[-1])
    spec = loaded.spec
    family = "teacher" if not spec.is_student else "hybrid" if spec.n_attention else "pure"
    found_at = provenance(seed=0)
    return ParityReport(
        loaded.name,
        loaded.sha,
        family,
        spec.n_params,
        plan.quick,
        plan.problems,
        tuple(checks),
        curve[0],
        found_at,
    )


def _groups(loaded: Loaded, folder: Path, plan: Plan, keep: Callable[[Curve], None]) -> Iterator[Group]:
    problems = load_problems(plan.problems, limit=plan.prompts)
    prompts = [prompt_tokens(loaded.tokenizer, problem.question) for problem in problems]
    chains = draw_sample(loaded, prompts, plan.new)
    noise = Noise(loaded)
    few, texts = chains[: plan.few], [problem.question for problem in problems]

    def drifted() -> list[Check]:
        check, curve = drift(loaded, chains, plan.steps)
        keep(curve)
        return [check]

    yield lambda: [own.prefill_against_step(loaded, chains, noise)]
    yield lambda: [own.fine_prefill_against_step(loaded, few)]
    yield lambda: [own.one_against_ragged(loaded, chains, noise)]
    yield lambda: [own.fine_one_against_ragged(loaded, few)]
    yield lambda: [own.alone_against_together(loaded, few, plan.new, noise)]
    yield lambda: [own.fork_against_independent(loaded, few, plan.new, noise)]
    yield drifted
    yield lambda: _refusable("logits", NAME, lambda: against_transformers(loaded, folder, chains, len(few), noise))
    yield lambda: _refusable("log-probabilities", "vLLM", lambda: _vllm(loaded, folder, plan, few, noise))
    yield lambda: _refusable(
        "log-probabilities", "llama.cpp", lambda: _llama_cpp(loaded, folder, plan, few, texts, noise)
    )


def _refusable(name: str, against: str, group: Group) -> list[Check]:
    """The group's checks, or one that says why they could not run."""
    try:
        return group()
    except (ParityError, ModelError) as error:
        return [Check(name, against, None, 0.0, "", f"{error.message}; {error.remedy}")]


def _vllm(loaded: Loaded, folder: Path, plan: Plan, chains: Sequence[Greedy], noise: Noise) -> list[Check]:
    python = peers.find_python(peers.VLLM, plan.vllm_python)
    if python is None:
        raise peers.absent(peers.VLLM)
    return peers.against_peer(peers.VLLM, python, folder, loaded, chains, (), noise)


def _llama_cpp(
    loaded: Loaded, folder: Path, plan: Plan, chains: Sequence[Greedy], texts: Sequence[str], noise: Noise
) -> list[Check]:
    python = peers.find_python(peers.LLAMA_CPP, plan.llama_python)
    if python is None:
        raise peers.absent(peers.LLAMA_CPP)
    with tempfile.TemporaryDirectory(prefix="thinkfast-parity-") as scratch:
        file = Path(scratch) / "model.gguf"
        write_gguf(loaded, file, torch.float32)
        return peers.against_peer(peers.LLAMA_CPP, python, file, loaded, chains, texts, noise)


def missing(checks: Sequence[Check], wanted: Sequence[str]) -> list[str]:
    """Which of the programs ``wanted`` no check has run against. Errors: InputError for a name of no program."""
    if bad := [name for name in wanted if name not in PROGRAMS]:
        raise InputError(f"there is no comparison with {bad[0]!r}", remedy=f"require one of {', '.join(PROGRAMS)}")
    ran = [check.against.split()[0].lower() for check in checks if check.value is not None]
    return [name for name in wanted if name not in ran]


@contextmanager
def stock_folder(loaded: Loaded) -> Iterator[Path]:
    """The checkpoint folder that other programs read: the model's own, or a temporary one where it has none."""
    if (loaded.path / "config.json").is_file() and any(loaded.path.glob("*.safetensors")):
        yield loaded.path
        return
    with tempfile.TemporaryDirectory(prefix="thinkfast-parity-") as folder:
        yield save_checkpoint(loaded.model, loaded.tokenizer.path, folder)
