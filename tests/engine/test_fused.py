from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy_models import SPECS, engine, random_model

from thinkfast.engine.cache import Cache, Fork
from thinkfast.engine.fused import MAX_BYTES, FusedStep, fusible
from thinkfast.engine.request import SamplingParams
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import ModelSpec

BIASED = replace(SPECS["teacher"], qkv_bias=True, tie_embeddings=True)
VARIANTS = {
    **SPECS,
    "biased": BIASED,
    "biased-hybrid": BIASED.as_student(keep=(0,), d_state=8),
    "wide-conv": replace(SPECS["pure"], d_conv=2),
}


def steps(spec: ModelSpec, fused: bool, count: int) -> torch.Tensor:
    """[count, 5, V] logits of rows that come and go, from tokens that are the same for both ways."""
    model = random_model(spec)
    cache = Cache(spec, 8, 200, 60, torch.float32, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    lens = torch.tensor([3, 70, 20])
    with torch.inference_mode():
        _, states = model.prefill(torch.randint(0, 64, (93,), generator=generator), Ragged(lens))
        a, b, c = cache.store(lens.tolist(), states)
        cache.fork([Fork(a, 4, last=True), Fork(b, 2, last=True), Fork(c, 1, last=True)])
        positions = torch.tensor([3, 3, 3, 3, 70, 70, 20])
        step, found = FusedStep(model, 200), []
        for i in range(count):
            tokens, caches = torch.randint(0, 64, (7,), generator=generator)[: len(positions)], cache.begin_step()
            if fused:
                logits = step(tokens, positions, caches)
            else:
                logits = model.logits(model.step(tokens, positions, caches))
            found.append(logits[:5].clone())
            positions = positions + 1
            if i == 5:  # the last two rows fill the holes
                cache.release([0, 2])
                positions = positions[[6, 1, 5, 3, 4]]
    return torch.stack(found)


@pytest.mark.parametrize("kind", VARIANTS)
def test_equals_the_decoders_own_step(kind: str) -> None:
    spec = VARIANTS[kind]
    assert fusible(random_model(spec))
    torch.testing.assert_close(steps(spec, True, 80), steps(spec, False, 80), atol=1e-4, rtol=1e-4)


def test_what_it_cannot_do_runs_the_decoders_own_step() -> None:
    assert not fusible(random_model(replace(SPECS["teacher"], qk_norm=True)))
    assert not fusible(random_model(SPECS["teacher"]).to(torch.bfloat16))
    large = random_model(SPECS["teacher"])
    large.spec = replace(large.spec, vocab_size=MAX_BYTES)
    assert not fusible(large)


@pytest.mark.parametrize("kind", ["teacher", "hybrid", "pure"])
def test_the_engine_gives_the_same_tokens_without_it(kind: str) -> None:
    params = SamplingParams(n=4, max_tokens=70, ignore_eos=True, seed=5)
    llm = engine(kind)
    fast = [c.tokens for c in llm.generate([[5, 6, 7]], params)[0]]
    llm._runner._fused = None
    assert [c.tokens for c in llm.generate([[5, 6, 7]], params)[0]] == fast
