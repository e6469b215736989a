"""Corpus: every example once per epoch, the right mask, and a pure function of (seed, step)."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkfast.data.corpus import Batch, Corpus, Example, Pool
from thinkfast.errors import InputError

SIZES = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 20)), min_size=1, max_size=60)


def make_pool(sizes: list[tuple[int, int]]) -> Pool:
    """Example i has sizes[i] = (prompt, answer) tokens; the first token names the example."""
    return Pool.of(Example((1000 + i, *range(1, p + a)), p) for i, (p, a) in enumerate(sizes))


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(32, 200), st.integers(0, 2**40), st.sampled_from([0, 4, 1024]))
def test_every_example_once_per_epoch_and_each_whole(
    sizes: list[tuple[int, int]], tokens_per_batch: int, seed: int, bucket: int
) -> None:
    pool = make_pool(sizes)
    longest = max(p + a for p, a in sizes)
    try:
        corpus = Corpus(pool, tokens_per_batch=tokens_per_batch, seed=seed, bucket=bucket)
    except InputError:
        assert sum(p + a for p, a in sizes) / max(1, round(sum(p + a for p, a in sizes) / tokens_per_batch)) < longest
        return
    for epoch in range(2):
        seen: list[int] = []
        for i in range(corpus.batches_per_epoch):
            batch = corpus.batch(epoch * corpus.batches_per_epoch + i)
            assert len(batch.lens) > 0
            assert int(batch.lens.sum()) == len(batch.tokens) == len(batch.loss_mask)
            assert len(batch.tokens) <= 1.5 * tokens_per_batch + longest
            for tokens in torch.split(batch.tokens, batch.lens.tolist()):
                name = int(tokens[0]) - 1000
                seen.append(name)
                assert tuple(tokens.tolist()) == pool.example(name).tokens
        assert sorted(seen) == list(range(len(sizes)))


@settings(max_examples=100, deadline=None)
@given(SIZES)
def test_mask_is_true_where_the_next_token_is_of_the_answer(sizes: list[tuple[int, int]]) -> None:
    corpus = Corpus(make_pool(sizes), tokens_per_batch=10_000)
    batch = corpus.batch(0)
    assert (batch.tokens.dtype, batch.lens.dtype, batch.loss_mask.dtype) == (torch.int64, torch.int64, torch.bool)
    lens = batch.lens.tolist()
    for tokens, mask in zip(torch.split(batch.tokens, lens), torch.split(batch.loss_mask, lens), strict=True):
        prompt, answer = sizes[int(tokens[0]) - 1000]
        assert mask.tolist() == [False] * (prompt - 1) + [True] * answer + [False]


def test_batches_are_pure_in_seed_and_step() -> None:
    pool = make_pool([(3, n) for n in range(1, 40)] * 5)
    steps = [7, 0, 31, 3, 7, 100]
    forward = list(islice(iter(Corpus(pool, tokens_per_batch=100, seed=3)), 101))
    jumping = Corpus(pool, tokens_per_batch=100, seed=3)
    for step in steps:
        batch = jumping.batch(step)
        assert torch.equal(batch.tokens, forward[step].tokens)
        assert torch.equal(batch.lens, forward[step].lens)
        assert torch.equal(batch.loss_mask, forward[step].loss_mask)
    other = Corpus(pool, tokens_per_batch=100, seed=4)
    assert not torch.equal(other.batch(0).tokens, forward[0].tokens)
    epoch = jumping.batches_per_epoch
    assert not torch.equal(forward[0].tokens, jumping.batch(epoch).tokens)


def test_frozen_order() -> None:
    """A resumed run on another machine or numpy must see the same order."""
    corpus = Corpus(make_pool([(1, 1)] * 12), tokens_per_batch=24, seed=20339, bucket=0)
    assert corpus.members(0).tolist() == [5, 4, 2, 0, 11, 10, 8, 6, 9, 1, 3, 7]


def test_buckets_keep_lengths_together() -> None:
    pool = make_pool([(3, 1 + (7 * i) % 90) for i in range(1000)])

    def padding(bucket: int) -> float:
        corpus = Corpus(pool, tokens_per_batch=1_000, bucket=bucket)
        lens = [corpus.batch(i).lens for i in range(corpus.batches_per_epoch)]
        return sum(int(n.max()) * len(n) for n in lens) / sum(int(n.sum()) for n in lens) - 1

    assert padding(1024) < 0.1 < 0.5 < padding(0)


def test_bad_sizes_are_named() -> None:
    pool = make_pool([(5, 50), (5, 50), (1, 2)])
    with pytest.raises(InputError, match="longest example has 55 tokens"):
        Corpus(pool, tokens_per_batch=40)
    with pytest.raises(InputError, match="a batch has 0 tokens"):
        Corpus(pool, tokens_per_batch=0)
    with pytest.raises(InputError, match="step is -1"):
        Corpus(pool, tokens_per_batch=100).batch(-1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 8))
def test_parts_of_a_batch_hold_each_sequence_once_and_whole(lens: list[int], parts: int) -> None:
    total = sum(lens)
    starts = [sum(lens[:i]) for i in range(len(lens))]
    found = Batch(torch.arange(total), torch.tensor(lens), torch.arange(total) % 2 == 0).split(parts)
    assert len(found) == min(parts, len(lens))
    seen = []
    for b in found:
        assert torch.equal(b.loss_mask, b.tokens % 2 == 0)
        for tokens in b.tokens.split(b.lens.tolist()):
            start = int(tokens[0])
            assert tokens.tolist() == list(range(start, start + lens[starts.index(start)]))
            seen.append(start)
        assert len(b.tokens) <= total / parts + max(lens)
    assert sorted(seen) == starts


def test_parts_are_as_even_as_whole_sequences_allow() -> None:
    def sizes(*lens: int, parts: int = 2) -> list[int]:
        total = sum(lens)
        batch = Batch(torch.arange(total), torch.tensor(lens), torch.ones(total, dtype=torch.bool))
        return sorted(len(b.tokens) for b in batch.split(parts))

    assert sizes(280, 250, 200, 180, 150) == [530, 530]  # longest first alone leaves 460 and 600
    assert sizes(30, 30, 20, 20) == [50, 50]
    assert sizes(100) == [100]
    assert sizes(50, 40, 30, 20, 10, parts=3) == [50, 50, 50]
