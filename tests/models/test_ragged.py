from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from thinkfast.models.ragged import Ragged

LENS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


@given(LENS)
def test_pad_and_unpad_are_inverse_and_pad_with_zeros(lens: list[int]) -> None:
    ragged = Ragged(torch.tensor(lens))
    x = torch.randn(sum(lens), 2, 3)
    padded = ragged.pad(x)
    assert padded.shape == (len(lens), max(lens), 2, 3)
    assert torch.equal(ragged.unpad(padded), x)
    assert torch.equal(padded[ragged.valid], x)
    assert not padded[~ragged.valid].any()


@given(LENS)
def test_index_maps_follow_the_lengths(lens: list[int]) -> None:
    ragged = Ragged(torch.tensor(lens))
    assert (ragged.n, ragged.total, ragged.max_len) == (len(lens), sum(lens), max(lens))
    assert ragged.positions.tolist() == [p for length in lens for p in range(length)]
    assert ragged.sequence.tolist() == [i for i, length in enumerate(lens) for _ in range(length)]
    assert ragged.starts.tolist() == [sum(lens[:i]) for i in range(len(lens))]
    assert ragged.rectangular == (len(set(lens)) == 1)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_last_points_at_each_sequences_last_token(lens: list[int]) -> None:
    ragged = Ragged(torch.tensor(lens))
    assert ragged.sequence[ragged.last].tolist() == list(range(len(lens)))
    assert ragged.positions[ragged.last].tolist() == [length - 1 for length in lens]


def test_gradients_pass_through_both_ways() -> None:
    ragged = Ragged(torch.tensor([2, 5, 1]))
    x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: ragged.unpad(ragged.pad(t).sin()), x)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_parts_of_like_lengths_hold_all_tokens_once_and_little_padding(lens: list[int]) -> None:
    ragged = Ragged(torch.tensor(lens))
    alike = ragged.alike
    if ragged.n * ragged.max_len <= 2 * ragged.total:
        assert alike is None
        return
    assert alike is not None
    x = torch.arange(ragged.total)
    assert torch.equal(x[alike.order][alike.back], x)
    longest_first = torch.tensor(sorted(filter(None, lens), reverse=True))
    assert torch.cat([part.lens for part in alike.parts]).tolist() == longest_first.tolist()
    for part in alike.parts:
        assert part.n * part.max_len <= 2 * part.total
    # A sequence's tokens stay together, in their order.
    assert ragged.positions[alike.order].tolist() == [p for length in longest_first.tolist() for p in range(length)]
    pairs = set(zip(ragged.sequence[alike.order].tolist(), Ragged(longest_first).sequence.tolist(), strict=True))
    assert len(pairs) == len(longest_first)
    (split,) = alike.split(x)
    assert [len(part) for part in split] == [part.total for part in alike.parts]
    firsts = torch.cat([part[one.starts] for part, one in zip(split, alike.parts, strict=True)])
    found = alike.by_sequence(firsts + 1)
    assert found.tolist() == [start + 1 if length else 0 for start, length in zip(ragged.starts, lens, strict=True)]
    # As many parts as lengths halve, at most: each is a pass of its own.
    assert len(alike.parts) <= 7
