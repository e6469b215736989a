from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from thinkfast.engine.rng import sample_key, uniform

MASK = (1 << 64) - 1
int64 = st.integers(-(1 << 63), (1 << 63) - 1)


def splitmix(key: int, counter: int) -> float:
    """The published generator in unbounded integers."""
    z = (key + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return ((z ^ (z >> 31)) >> 41) * 2.0**-23


@given(st.lists(st.tuples(int64, st.integers(0, 10**6)), min_size=1, max_size=20))
def test_equals_splitmix(pairs: list[tuple[int, int]]) -> None:
    keys, counters = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assert uniform(keys, counters).tolist() == [splitmix(k, c) for k, c in pairs]


def test_keys_are_those_of_every_machine() -> None:
    assert sample_key(0, "a", 0) == 6713522722224487935
    assert sample_key(-1, "gsm8k-7", 63) == -4581016482350497469


def test_every_part_of_the_name_counts() -> None:
    names = [(s, r, i) for s in range(10) for r in ("a", "b", "1", "11") for i in range(20)]
    assert len({sample_key(*name) for name in names}) == len(names)


def test_uniform_over_positions_and_over_samples() -> None:
    positions = uniform(torch.full((200_000,), sample_key(1, "x", 0)), torch.arange(200_000))
    samples = uniform(torch.tensor([sample_key(1, "x", i) for i in range(50_000)]), torch.zeros(50_000).long())
    for u in (positions, samples):
        counts = torch.histc(u, bins=64, min=0, max=1)
        chi_square = ((counts - len(u) / 64) ** 2 / (len(u) / 64)).sum()
        assert chi_square < 103  # 63 degrees of freedom, p = 0.001
        assert 0 <= u.min()
        assert u.max() < 1
    pairs = (positions[:-1] * 8).long() * 8 + (positions[1:] * 8).long()
    counts = torch.bincount(pairs, minlength=64).double()
    assert ((counts - len(pairs) / 64) ** 2 / (len(pairs) / 64)).sum() < 103
