from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from toy_models import SPECS, engine, random_model, row_params

from thinkfast.engine.cache import PAGE, Cache, Fork
from thinkfast.engine.native import NativeStep, native_draw, native_library
from thinkfast.engine.request import SamplingParams
from thinkfast.engine.sampler import draw, mix_of
from thinkfast.kernels.cpu.build import compiler
from thinkfast.models.decoder import Decoder
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import ModelSpec

CPU = torch.device("cpu")
BIASED = replace(SPECS["teacher"], qkv_bias=True, tie_embeddings=True)
VARIANTS = {
    **SPECS,
    "biased": BIASED,
    "biased-hybrid": BIASED.as_student(keep=(0,), d_state=8),
    "normed-heads": replace(SPECS["teacher"], qk_norm=True),
    "wide-conv": replace(SPECS["pure"], d_conv=2),
    "odd-state": replace(SPECS["pure"], d_state=3),
    "ragged-widths": replace(SPECS["hybrid"], d_model=37, d_ff=45, vocab_size=67),
    "no-group": replace(SPECS["hybrid"], ssm_kv_heads=6),
    "heads-of-32": replace(SPECS["hybrid"], head_dim=32, n_heads=2, n_kv_heads=1, ssm_kv_heads=1),
    "heads-of-64": replace(SPECS["hybrid"], head_dim=64, n_heads=2, n_kv_heads=2, ssm_kv_heads=2, d_state=16),
    "heads-of-128": replace(SPECS["hybrid"], head_dim=128, n_heads=2, n_kv_heads=2, ssm_kv_heads=2, d_state=32),
}


def library_for(spec: ModelSpec) -> ctypes.CDLL:
    if compiler() is None:
        pytest.skip("no C compiler here")
    library = native_library(spec, PAGE, torch.float32, CPU)
    assert library is not None, "the compiler that is here does not make the step"
    return library


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def steps(model: Decoder, native: bool, count: int) -> torch.Tensor:
    """[count, 5, V] logits of rows that come and go, from tokens that are the same for both ways."""
    spec = model.spec
    cache = Cache(spec, 8, 200, 60, torch.float32, CPU)
    generator = torch.Generator().manual_seed(1)
    lens = torch.tensor([3, 70, 20])
    with torch.inference_mode():
        _, states = model.prefill(torch.randint(0, 64, (93,), generator=generator), Ragged(lens))
        a, b, c = cache.store(lens.tolist(), states)
        cache.fork([Fork(a, 4, last=True), Fork(b, 2, last=True), Fork(c, 1, last=True)])
        positions = torch.tensor([3, 3, 3, 3, 70, 70, 20])
        step, found = NativeStep(library_for(spec), model, cache.memory, 200, 8) if native else None, []
        for i in range(count):
            tokens = torch.randint(0, 64, (7,), generator=generator)[: len(positions)]
            if step is not None:
                logits = step(tokens, positions, cache.begin_native())
            else:
                logits = model.logits(model.step(tokens, positions, cache.begin_step()))
            found.append(logits[:5].clone())
            positions = positions + 1
            if i == 5:  # the last two rows fill the holes
                cache.release([0, 2])
                positions = positions[[6, 1, 5, 3, 4]]
    return torch.stack(found)


@pytest.mark.parametrize("kind", VARIANTS)
def test_equals_the_decoders_own_step(kind: str) -> None:
    model = random_model(VARIANTS[kind])
    # Both sum in fp32, in another order.
    torch.testing.assert_close(steps(model, True, 80), steps(model, False, 80), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kind", ["hybrid", "teacher"])
def test_any_number_of_threads(kind: str, threads: int) -> None:
    model = random_model(SPECS[kind])
    torch.testing.assert_close(steps(model, True, 20), steps(model, False, 20), atol=2e-4, rtol=2e-4)


def test_weights_that_are_bf16s_are_kept_as_such() -> None:
    model = random_model(SPECS["hybrid"]).to(torch.bfloat16).float()
    torch.testing.assert_close(steps(model, True, 20), steps(model, False, 20), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 12, 13, 24, 25])
def test_any_number_of_rows(rows: int) -> None:
    model = random_model(SPECS["hybrid"])
    library, found = library_for(model.spec), []
    tokens, positions = torch.arange(rows) % 64, torch.full((rows,), 4)
    with torch.inference_mode():
        _, states = model.prefill(torch.arange(4), Ragged(torch.tensor([4])))
        for native in (True, False):
            cache = Cache(model.spec, rows, 100, 2 * rows + 4, torch.float32, CPU)
            cache.fork([Fork(cache.store([4], states)[0], rows, last=True)])
            if native:
                step = NativeStep(library, model, cache.memory, 100, rows)
                found.append(step(tokens, positions, cache.begin_native()).clone())
            else:
                found.append(model.logits(model.step(tokens, positions, cache.begin_step())))
    torch.testing.assert_close(found[0], found[1], atol=2e-4, rtol=2e-4)


def test_a_row_of_nan_stays_alone() -> None:
    model = random_model(SPECS["hybrid"])
    model.embed.weight[7] = float("nan")
    library = library_for(model.spec)
    with torch.inference_mode():
        _, states = model.prefill(torch.arange(4), Ragged(torch.tensor([4])))
        cache = Cache(model.spec, 3, 100, 10, torch.float32, CPU)
        cache.fork([Fork(cache.store([4], states)[0], 3, last=True)])
        step = NativeStep(library, model, cache.memory, 100, 3)
        logits = step(torch.tensor([5, 7, 6]), torch.full((3,), 4), cache.begin_native())
    assert logits.isfinite().all(1).tolist() == [True, False, True]
    assert logits[1].isnan().all()


def test_what_it_does_not_serve_stays_with_torch() -> None:
    assert native_library(replace(SPECS["teacher"], head_dim=6), PAGE, torch.float32, CPU) is None
    assert native_library(SPECS["teacher"], PAGE, torch.bfloat16, CPU) is None
    assert native_library(SPECS["teacher"], PAGE, torch.float32, torch.device("cuda")) is None


@pytest.mark.parametrize("kind", ["teacher", "hybrid", "pure"])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_engine_gives_the_same_tokens_without_it(kind: str, top_p: float) -> None:
    params = SamplingParams(n=4, max_tokens=70, ignore_eos=True, seed=5, top_p=top_p)
    llm = engine(kind)
    library_for(llm.spec)
    assert llm.step_path == "compiled"
    fast = [c.tokens for c in llm.generate([[5, 6, 7]], params)[0]]
    llm._runner.decode.native = None
    assert llm.step_path == "torch"
    assert [c.tokens for c in llm.generate([[5, 6, 7]], params)[0]] == fast


# 1,029 tokens are two whole chunks and a ragged third.
@pytest.mark.parametrize("size", [5, 64, 1029])
def test_draws_what_the_sampler_draws(size: int) -> None:
    library = library_for(SPECS["teacher"])
    generator = torch.Generator().manual_seed(size)
    logits = 3 * torch.randn(300, size, generator=generator)
    params = row_params([SamplingParams(temperature=(0.0, 0.5, 1.0, 1.7)[i % 4], seed=i) for i in range(300)])
    fast, slow = native_draw(library, logits, params), draw(logits, params, mix_of(params))
    assert fast.finite.all()
    # A draw that falls within rounding of the border between two tokens may go to either.
    same = fast.tokens == slow.tokens
    assert same.sum() >= 299
    torch.testing.assert_close(fast.logprobs[same], slow.logprobs[same], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast.certainty, slow.certainty, atol=1e-4, rtol=1e-4)


def test_draws_mark_rows_that_are_not_finite() -> None:
    library = library_for(SPECS["teacher"])
    logits = torch.zeros(4, 70)
    logits[1, 3], logits[2, 69], logits[3, 0] = float("nan"), float("inf"), float("-inf")
    params = row_params([SamplingParams(seed=1)] * 4)
    assert native_draw(library, logits, params).finite.tolist() == [True, False, False, False]
    assert draw(logits, params, mix_of(params)).finite.tolist() == [True, False, False, False]


def test_logits_may_be_a_slice_of_wider_rows() -> None:
    library = library_for(SPECS["teacher"])
    wide = torch.randn(8, 96)
    params = row_params([SamplingParams(temperature=0)] * 8)
    assert torch.equal(native_draw(library, wide[:, :67], params).tokens, wide[:, :67].argmax(1))
