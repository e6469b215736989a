from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_models import SPECS

from thinkfast.engine.attend import Workspace
from thinkfast.engine.cache import PAGE, Cache, Fork, PromptHandle, Usage
from thinkfast.models.attention import KVState
from thinkfast.models.decoder import LayerState
from thinkfast.models.mixers import SSMState
from thinkfast.models.spec import ModelSpec

MAX_ROWS, MAX_LEN = 6, 4 * PAGE
EMPTY = Usage(rows=0, prompts=0, pages=0, states=0)
SMALL = ModelSpec(8, 8, 4, 2, 4, 8, ("attention", "attention"), max_positions=MAX_LEN)
KINDS = {"mha": SPECS["teacher-mha"], "gqa": SMALL, "hybrid": SMALL.as_student((1,), 3), "pure": SMALL.as_student(())}


def make(spec: ModelSpec, rows: int = MAX_ROWS) -> Cache:
    pages = rows * MAX_LEN // PAGE + 20
    cache = Cache(spec, rows, MAX_LEN, pages, torch.float32, torch.device("cpu"))
    if cache._kv is not None:  # memory that nobody has written holds anything
        for memory in (cache._kv.k, cache._kv.v, cache._kv.tail_k, cache._kv.tail_v):
            memory.fill_(float("nan"))
    return cache


@dataclass
class Row:
    """What a row should remember: per layer, keys and values in order, or conv and ssm states."""

    prompt: int
    kv: list[tuple[Tensor, Tensor]]
    ssm: list[tuple[Tensor, Tensor]]


@dataclass
class Model:
    """The cache by the book: every row with its own full copy of everything."""

    spec: ModelSpec
    rows: list[Row] = field(default_factory=list)
    prompts: dict[int, tuple[PromptHandle, Row]] = field(default_factory=dict)

    def states(self, lens: list[int]) -> list[LayerState]:
        s, total, n = self.spec, sum(lens), len(lens)
        kv = (total, s.n_kv_heads, s.head_dim)
        conv, ssm = (n, s.d_conv - 1, s.conv_channels), (n, s.n_heads, s.head_dim, s.d_state)
        return [
            KVState(torch.randn(kv), torch.randn(kv))
            if kind == "attention"
            else SSMState(torch.randn(conv), torch.randn(ssm))
            for kind in s.layer_types
        ]

    def store(self, handles: list[PromptHandle], lens: list[int], states: list[LayerState]) -> None:
        for i, handle in enumerate(handles):
            tokens = slice(sum(lens[:i]), sum(lens[: i + 1]))
            row = Row(
                handle.id,
                [(s.k[tokens], s.v[tokens]) for s in states if isinstance(s, KVState)],
                [(s.conv[i], s.ssm[i]) for s in states if isinstance(s, SSMState)],
            )
            self.prompts[handle.id] = (handle, row)

    def fork(self, handle: PromptHandle, count: int) -> None:
        row = self.prompts[handle.id][1]
        for _ in range(count):
            self.rows.append(Row(row.prompt, list(row.kv), [(c.clone(), s.clone()) for c, s in row.ssm]))

    def release(self, gone: list[int]) -> None:
        """Rows that stay keep their places where they can; the last ones fill the holes."""
        left = len(self.rows) - len(gone)
        movers = [row for i, row in enumerate(self.rows) if i >= left and i not in gone]
        for hole in sorted(i for i in gone if i < left):
            self.rows[hole] = movers.pop(0)
        del self.rows[left:]


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """q [H, P] over k, v [L, K, P], by definition."""
    group = q.shape[0] // k.shape[1]
    weights = torch.einsum("hp,lhp->hl", q * scale, k.repeat_interleave(group, 1)).softmax(-1)
    return torch.einsum("hl,lhp->hp", weights, v.repeat_interleave(group, 1))


def step(cache: Cache, model: Model) -> None:
    """One step through every layer of both; they must agree row by row."""
    s, b = model.spec, len(model.rows)
    at, sm = 0, 0
    for kind, layer in zip(s.layer_types, cache.begin_step(), strict=True):
        if kind == "attention":
            q, k, v = (torch.randn(b, n, s.head_dim) for n in (s.n_heads, s.n_kv_heads, s.n_kv_heads))
            found = layer.attend(q, k, v, 0.5)
            for i, row in enumerate(model.rows):
                old_k, old_v = row.kv[at]
                row.kv[at] = torch.cat((old_k, k[i : i + 1])), torch.cat((old_v, v[i : i + 1]))
                want = attention(q[i], *row.kv[at], 0.5)
                torch.testing.assert_close(found[i], want, atol=2e-5, rtol=2e-5)
            at += 1
        else:
            for i, row in enumerate(model.rows):
                assert layer.conv[i].equal(row.ssm[sm][0])
                assert layer.ssm[i].equal(row.ssm[sm][1])
                row.ssm[sm][0].add_(i)
                row.ssm[sm][1].mul_(i + 2)
            layer.conv.add_(torch.arange(b)[:, None, None])
            layer.ssm.mul_(torch.arange(b)[:, None, None, None] + 2)
            sm += 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE])
@pytest.mark.parametrize("count", [1, 3])
def test_rows_remember_their_prompt_and_their_own_steps(kind: str, length: int, count: int) -> None:
    cache, model = make(KINDS[kind]), Model(KINDS[kind])
    lens = [length, 7]
    states = model.states(lens)
    handles = cache.store(lens, states)
    model.store(handles, lens, states)
    assert cache.fork([Fork(handles[0], count, last=True), Fork(handles[1], 1, last=True)]) == range(count + 1)
    model.fork(handles[0], count)
    model.fork(handles[1], 1)
    for _ in range(PAGE + 2):
        step(cache, model)
    cache.release([0])
    model.release([0])
    step(cache, model)
    cache.release(range(count))
    assert cache.usage == EMPTY


@pytest.mark.parametrize("kind", KINDS)
def test_random_life_agrees_with_full_copies_and_leaks_nothing(kind: str) -> None:
    spec = KINDS[kind]
    cache, model = make(spec), Model(spec)
    rng = np.random.default_rng(0)
    pending: dict[int, PromptHandle] = {}
    for _ in range(200):
        action = rng.integers(0, 10)
        free = MAX_ROWS - len(model.rows)
        if action < 2 and free and not pending:
            lens = rng.integers(1, 2 * PAGE, size=rng.integers(1, free + 1)).tolist()
            states = model.states(lens)
            handles = cache.store(lens, states)
            model.store(handles, lens, states)
            forks = [Fork(h, 1, last=bool(rng.integers(0, 2))) for h in handles]
            cache.fork(forks)
            for fork in forks:
                model.fork(fork.prompt, 1)
                if not fork.last:
                    pending[fork.prompt.id] = fork.prompt
        elif action < 4 and free and pending:
            handle = pending.popitem()[1]
            count = int(rng.integers(1, free + 1))
            cache.fork([Fork(handle, count, last=True)])
            model.fork(handle, count)
        elif action == 4 and pending:
            cache.close(pending.popitem()[1])
        elif action < 7 and model.rows:
            gone = sorted(rng.choice(len(model.rows), size=rng.integers(1, len(model.rows) + 1), replace=False))
            cache.release([int(i) for i in gone])
            model.release([int(i) for i in gone])
        long = [i for i, row in enumerate(model.rows) if row.kv and len(row.kv[0][0]) > MAX_LEN - 12]
        cache.release(long)
        model.release(long)
        if model.rows:
            for _ in range(rng.integers(1, 12)):
                step(cache, model)
        live = {row.prompt for row in model.rows} | set(pending)
        assert cache.usage.rows == len(model.rows)
        assert cache.usage.prompts <= len(live)
    for handle in pending.values():
        cache.close(handle)
    cache.release(range(cache.rows))
    assert cache.usage == EMPTY


@pytest.mark.parametrize("kind", ["gqa", "hybrid", "pure"])
def test_ten_thousand_admits_forks_and_releases_leak_nothing(kind: str) -> None:
    spec = KINDS[kind]
    cache, model = make(spec, rows=16), Model(spec)
    states = {n: model.states([n]) for n in (1, 5, PAGE, PAGE + 9)}
    rng = np.random.default_rng(1)
    waiting: PromptHandle | None = None
    counts = {"admit": 0, "fork": 0, "close": 0, "release": 0}
    for _ in range(10_000):
        free, action = 16 - cache.rows, rng.random()
        if action < 0.35 and free and waiting is None:
            n = int(rng.choice(list(states)))
            (waiting,) = cache.store([n], states[n])
            counts["admit"] += 1
        elif action < 0.6 and free and waiting is not None:
            last = bool(rng.random() < 0.6)
            cache.fork([Fork(waiting, int(rng.integers(1, free + 1)), last)])
            waiting = None if last else waiting
            counts["fork"] += 1
        elif action < 0.65 and waiting is not None:
            cache.close(waiting)
            waiting = None
            counts["close"] += 1
        elif cache.rows:
            gone = rng.choice(cache.rows, size=rng.integers(1, cache.rows + 1), replace=False)
            cache.release([int(i) for i in gone])
            counts["release"] += 1
        if cache.rows and rng.random() < 0.1:
            cache.begin_step()
        assert cache.rows <= 16
        if not cache.rows:
            held = cache.usage
            assert held.prompts == (waiting is not None)
            if waiting is None:
                assert held == EMPTY
    assert min(counts.values()) > 100
    if waiting is not None:
        cache.close(waiting)
    cache.release(range(cache.rows))
    assert cache.usage == EMPTY


def test_a_shared_prompt_is_stored_and_read_once() -> None:
    spec, n = KINDS["gqa"], 6
    cache, model = make(spec), Model(spec)
    (handle,) = cache.store([3 * PAGE], model.states([3 * PAGE]))
    assert cache.usage.pages == 3
    cache.fork([Fork(handle, n, last=True)])
    assert cache.usage.pages == 3
    cache.begin_step()
    kv = cache._kv
    assert kv is not None
    assert (kv.step.plan.shared, kv.step.plan.owned, kv.step.plan.width) == (3, 0, n)
    cache.release(range(n))
    (alone,) = cache.store([3 * PAGE], model.states([3 * PAGE]))
    cache.fork([Fork(alone, 1, last=True)])
    assert cache.usage == Usage(rows=1, prompts=0, pages=3, states=0)
    cache.begin_step()
    assert (kv.step.plan.shared, kv.step.plan.owned) == (0, 3)


@pytest.mark.parametrize("share", [False, True])
def test_a_row_of_nan_touches_no_other_row_nor_its_successor(share: bool) -> None:
    spec = KINDS["gqa"]
    cache, model = make(spec), Model(spec)
    lens = [PAGE + 3, 9]
    states = model.states(lens)
    handles = cache.store(lens, states)
    cache.fork([Fork(handles[0], 3 if share else 1, last=True), Fork(handles[1], 1, last=True)])
    rows, bad = cache.rows, cache.rows - 1
    for _ in range(PAGE + 1):  # far enough for the bad row's tail to become a page
        for layer in cache.begin_step():
            q, k, v = (torch.randn(rows, h, spec.head_dim) for h in (4, 2, 2))
            q[bad], k[bad], v[bad] = float("nan"), float("nan"), float("inf")
            found = layer.attend(q, k, v, 1.0)
            assert found[:bad].isfinite().all()
            assert found[bad].isnan().all()
    cache.release([bad, 0])
    (handle,) = cache.store([PAGE + 1], model.states([PAGE + 1]))
    cache.fork([Fork(handle, 2, last=True)])
    for layer in cache.begin_step():
        assert layer.attend(*(torch.randn(rows, h, spec.head_dim) for h in (4, 2, 2)), 1.0).isfinite().all()


def test_buffers_are_reused_between_steps() -> None:
    spec = KINDS["gqa"]
    cache, model = make(spec), Model(spec)
    (handle,) = cache.store([5], model.states([5]))
    cache.fork([Fork(handle, 2, last=True)])
    cache.begin_step()
    assert cache._kv is not None
    work: Workspace = cache._kv.step.work
    before = work.scores.data_ptr()
    cache.begin_step()
    assert work.scores.data_ptr() == before
