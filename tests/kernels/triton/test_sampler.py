"""The sampler's kernels: the CPU sampler's tokens, its distribution, and a broken row that no other row notices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")

from thinkfast.engine import sampler as cpus_sampler
from thinkfast.engine.request import SamplingParams
from thinkfast.engine.rng import sample_key
from thinkfast.engine.sampler import RowParams, mix_of
from thinkfast.engine.sampler import draw as draw_reference
from thinkfast.kernels.triton.sampler import (
    BLOCK,
    CERTAINTY,
    CODE,
    LOGPROB,
    NEWS,
    TOKEN,
    SampleRows,
    SampleWork,
    draw,
    parts,
    scan,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PLAIN = SamplingParams(temperature=0.8)
MIX = [PLAIN, replace(PLAIN, temperature=0.0), replace(PLAIN, temperature=2.0)]
FILTERS = [*MIX[:2], replace(PLAIN, top_k=3), replace(PLAIN, top_p=0.6), replace(PLAIN, min_p=0.2, top_p=0.9, top_k=40)]
GOES_ON, STOPS, LENGTH, EOS, ERROR = range(5)

# Of news that nobody has written.
UNSAID = -7


def params_of(params: list[SamplingParams], count: int) -> RowParams:
    each = [params[i % len(params)] for i in range(count)]
    return RowParams(
        torch.tensor([sample_key(7, "r", i) for i in range(count)]),
        torch.arange(count) % 5 + 1,
        torch.tensor([1 / p.temperature if p.temperature else 1.0 for p in each]),
        torch.tensor([p.top_k for p in each]),
        torch.tensor([p.top_p for p in each]),
        torch.tensor([p.min_p for p in each]),
        torch.tensor([p.temperature == 0 for p in each]),
    )


def run(
    logits: Tensor, params: RowParams, device: torch.device, filters: bool, limit: int = 100, turn: int | None = None
) -> tuple[Tensor, SampleRows]:
    """News [NEWS, B] of one step, or with a ``turn`` a ring of four of them in the host's memory, and the rows after
    it; token 1 ends a row, token 2 may complete a stop string.
    """
    b, v = logits.shape
    whole = torch.zeros(b, dtype=torch.int64)
    rows = SampleRows(
        torch.arange(b, dtype=torch.int32), whole.int(), torch.ones(b, dtype=torch.int32), whole + 9,
        params.drawn.clone(), whole + limit, params.key, params.top_k, whole, params.inverse_temperature, params.top_p,
        params.min_p, params.greedy.int(), torch.ones(b, dtype=torch.int32),
    )  # fmt: skip
    rows = SampleRows(*(getattr(rows, name).to(device) for name in SampleRows.__slots__))
    eos, stops = torch.zeros(v, dtype=torch.uint8), torch.zeros(1, v, dtype=torch.uint8)
    eos[1] = stops[0, 2] = 1
    news = torch.full((NEWS, b), UNSAID, dtype=torch.int32, device=device)
    at = None
    if turn is not None:
        at = torch.tensor([turn], dtype=torch.int32, device=device)
        news = torch.full((4, NEWS, b), UNSAID, dtype=torch.int32, pin_memory=device.type == "cuda")
    work = SampleWork.make(b, v, device)
    work.sums.fill_(float("nan"))
    logits = logits.to(device)
    scan(logits, rows, work)
    draw(logits, rows, eos.to(device), stops.to(device), work, news, filters, at)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return news.cpu(), rows


@pytest.mark.parametrize("turn", [0, 3, 6, 2**31 - 1, -(2**31), -3])
def test_news_of_a_turn_are_written_to_its_place_and_no_other(turn: int, device: torch.device) -> None:
    logits = torch.randn(3, BLOCK + 60, generator=torch.Generator().manual_seed(5))
    want, _ = run(logits, params_of(MIX, 3), device, False)
    ring, _ = run(logits, params_of(MIX, 3), device, False, turn=turn)
    assert torch.equal(ring[turn % 4], want)
    assert all((ring[i] == UNSAID).all() for i in range(4) if i != turn % 4)


@pytest.mark.parametrize(("params", "filters"), [(MIX, False), (FILTERS, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("v", [50, BLOCK + 700])
def test_tokens_are_the_cpus(
    v: int, dtype: torch.dtype, params: list[SamplingParams], filters: bool, device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In bf16 tokens are often as likely as others, more so in every other row here. The first of them is ranked first,
    as the CPU's sampler does it where it sorts; it is made to, since its shorter way, topk, takes them as they come.
    """
    count = 600 if device.type == "cuda" else len(params) * (4 if dtype == torch.bfloat16 else 1)
    logits = (torch.randn(count, v, generator=torch.Generator().manual_seed(v)) * 3).to(dtype)
    if dtype == torch.bfloat16:
        monkeypatch.setattr(cpus_sampler, "CANDIDATES", 1)
        logits[::2] = (2 * logits[::2]).round() / 2
    mine = params_of(params, count)
    news, rows = run(logits, mine, device, filters)
    want = draw_reference(logits, mine, mix_of(mine))
    # A uniform number may lie between two tokens to the last bit of a sum: of a thousand rows in bf16 one does.
    same = news[TOKEN] == want.tokens
    assert int((~same).sum()) <= (count // 200 if dtype == torch.bfloat16 else 0)
    assert news[LOGPROB].view(torch.float32)[same].tolist() == pytest.approx(want.logprobs[same].tolist(), abs=2e-5)
    assert news[CERTAINTY].view(torch.float32).tolist() == pytest.approx(want.certainty.tolist(), abs=2e-5)
    code = torch.where(news[TOKEN] == 1, EOS, torch.where(news[TOKEN] == 2, STOPS, GOES_ON))
    assert news[CODE].tolist() == code.tolist()
    assert rows.token.tolist() == news[TOKEN].tolist()
    assert rows.alive.tolist() == (code != EOS).int().tolist()
    assert (rows.position == 10).all()
    assert (rows.drawn.cpu() == mine.drawn + 1).all()


def test_the_first_of_equal_peaks_is_greedy_and_the_last_token_ends_a_row(device: torch.device) -> None:
    logits = torch.zeros(2, 2 * BLOCK)
    logits[0, [40, 41, BLOCK + 3]] = 5.0
    logits[1, [BLOCK + 3, 2 * BLOCK - 1]] = 5.0
    news, _ = run(logits, params_of([MIX[1]], 2), device, False, limit=2)
    assert news[TOKEN].tolist() == [40, BLOCK + 3]
    assert news[CODE].tolist() == [LENGTH, LENGTH]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of what a GPU does without a word
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("fill", [False, True])
def test_a_row_that_is_not_finite_is_an_error_and_touches_no_other(
    bad: float, fill: bool, device: torch.device
) -> None:
    logits = torch.randn(3, BLOCK + 60, generator=torch.Generator().manual_seed(0))
    params = params_of([PLAIN], 3)
    good, _ = run(logits, params, device, False)
    logits[1, slice(None) if fill else BLOCK + 10] = bad
    found, rows = run(logits, params, device, False)
    assert found[CODE].tolist()[1] == ERROR
    assert rows.alive.tolist()[1] == 0
    assert 0 <= found[TOKEN].tolist()[1] < logits.shape[1]
    for i in (0, 2):
        assert found[:, i].tolist() == good[:, i].tolist()


@given(st.integers(1, 4096), st.integers(1, 300_000), st.sampled_from([2, 4]))
def test_parts_are_all_tokens_in_whole_blocks_and_no_more_than_there_is_room_for(b: int, v: int, size: int) -> None:
    found = parts(b, v, size)
    assert [first for first, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == v
    for first, end in found:
        assert first % BLOCK == 0
        assert first < end
        assert b * size * (end - first) <= 1 << 26 or end - first <= BLOCK


def test_logits_are_scanned_in_parts_as_at_once(device: torch.device) -> None:
    v = 2 * BLOCK + 100
    logits = torch.randn(3, v, generator=torch.Generator().manual_seed(1)).to(device)
    _, rows = run(logits, params_of(MIX, 3), device, False)
    once, again = SampleWork.make(3, v, device), SampleWork.make(3, v, device)
    scan(logits, rows, once)
    for first, end in [(BLOCK, 2 * BLOCK), (2 * BLOCK, v), (0, BLOCK)]:
        scan(logits, rows, again, first, end)
    assert torch.equal(once.sums, again.sums)


DRAWN_FROM = [
    PLAIN, replace(PLAIN, top_k=4), replace(PLAIN, top_p=0.7), replace(PLAIN, min_p=0.05),
    replace(PLAIN, min_p=0.2, top_p=0.8, top_k=12),
]  # fmt: skip


@pytest.mark.gpu  # the interpreter takes minutes for enough rows; token for token it is held to the CPU's sampler
@pytest.mark.parametrize("params", DRAWN_FROM)
@pytest.mark.parametrize(("v", "dtype"), [(20, torch.float32), (20, torch.bfloat16), (2 * BLOCK + 900, torch.bfloat16)])
def test_chi_square(v: int, dtype: torch.dtype, params: SamplingParams, device: torch.device) -> None:
    """Of few tokens each is counted by itself, of many those of a fortieth of the mass, which stand side by side."""
    count = 40_000 if v == 20 else 10_000
    logits = (torch.randn(v, generator=torch.Generator().manual_seed(3)) * 1.5).to(dtype)
    news, _ = run(logits.expand(count, -1).contiguous(), params_of([params], count), device, params != PLAIN)
    # As the samplers do: what of equal tokens stands first is ranked first, top_p is of what top_k has left.
    want = (logits.float() * params_of([params], 1).inverse_temperature).softmax(0)
    ranked, order = want.sort(descending=True, stable=True)
    kept = torch.arange(v) < (params.top_k or v)
    kept &= (ranked * kept).cumsum(0) - ranked < params.top_p * (ranked * kept).sum()
    kept &= ranked >= params.min_p * ranked[0]
    want = torch.zeros(v).index_copy(0, order, ranked * kept)
    want /= want.sum()
    counts = torch.bincount(news[TOKEN].long(), minlength=v).float()
    assert counts[want == 0].sum() == 0
    bins = torch.arange(v) if v == 20 else ((want.cumsum(0) - want) * 40).long().clamp(0, 39)
    expected, seen = (torch.zeros(v).index_add(0, bins, each) for each in (want * count, counts))
    there = expected > 0
    chi_square = float(((seen - expected)[there] ** 2 / expected[there]).sum())
    freedom = int(there.sum()) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5 + 4
