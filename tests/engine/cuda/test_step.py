"""The captured step in bf16 and with weights in eight bits against the same model run whole by torch, on a GPU."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

pytest.importorskip("triton", reason="CPU builds of torch come without triton")
sys.path.append(str(Path(__file__).parents[1]))

from toy_models import ToyTokenizer, random_model

from thinkfast.engine.llm import LLM
from thinkfast.engine.request import SamplingParams
from thinkfast.errors import ModelError
from thinkfast.kernels.triton import sampler
from thinkfast.kernels.triton.gated import fills
from thinkfast.kernels.triton.product import MOST_ROWS
from thinkfast.kernels.triton.sampler import BLOCK
from thinkfast.models.loading import Loaded
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import ModelSpec

pytestmark = pytest.mark.gpu

TEACHER = ModelSpec(64, 64, 6, 2, 16, 96, ("attention",) * 2, tie_embeddings=False, max_positions=1024)
WIDE = 8192
SPECS = {"teacher": TEACHER, "hybrid": TEACHER.as_student((1,), 16), "pure": TEACHER.as_student((), 64)}


def toy(spec: ModelSpec) -> Loaded:
    return Loaded("toy", Path(), spec, random_model(spec).to("cuda", torch.bfloat16), cast(Any, ToyTokenizer()), "")


# Rows for every way in which products are cut (kernels/triton/product.py), for cuBLAS, a block wide enough for
# kernels/triton/gated.py, and logits that come in three parts.
@pytest.mark.parametrize(
    ("fp8", "samples", "changes"),
    [(True, 3, {}), (False, 3, {}), (False, 20, {}), (False, 50, {}), (False, 150, {}), (False, 128, {"d_ff": WIDE}),
     (False, 128, {"vocab_size": 2 * BLOCK + 64}), (True, 128, {"vocab_size": 2 * BLOCK + 64})],
)  # fmt: skip
@pytest.mark.parametrize("kind", SPECS)
def test_logprobs_are_those_of_one_pass(
    kind: str, fp8: bool, samples: int, changes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 with states in fp32: both paths round the same numbers, but not always to the same side."""
    monkeypatch.setattr(sampler, "_ROOM", 1)
    spec = replace(SPECS[kind], **cast(Any, changes))
    assert fills(2 * samples, spec.d_ff, torch.device("cuda")) is (spec.d_ff == WIDE)
    loaded = toy(spec)
    llm = LLM(loaded, 2 * samples, 200, torch.bfloat16, "cuda", torch.float32, fp8_weights=fp8)
    assert llm.step_path == "captured"
    assert bool(llm.plan.packed_bytes) is (not fp8 and 2 * samples > MOST_ROWS)
    params = SamplingParams(n=samples, temperature=1.0, max_tokens=60, ignore_eos=True)
    prompts = [[5, 9, 11], list(range(4, 40))]
    off = []
    for prompt, chains in zip(prompts, llm.generate(prompts, params), strict=True):
        for chain in chains:
            tokens = torch.tensor([*prompt, *chain.tokens], device="cuda")
            model = llm.loaded.model
            logits = model.logits(model(tokens, Ragged(torch.tensor([len(tokens)], device="cuda"))))
            said = logits.float().log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, tokens[len(prompt) :, None])
            off.append((float(said.sum()) - chain.logprob) / len(chain.tokens))
    assert max(map(abs, off)) < (0.05 if fp8 else 0.02), off


def test_widths_that_do_not_align_are_refused() -> None:
    with pytest.raises(ModelError, match="multiples of 16"):
        LLM(toy(replace(TEACHER, d_ff=100)), 8, 200, torch.bfloat16, "cuda", fp8_weights=True)
