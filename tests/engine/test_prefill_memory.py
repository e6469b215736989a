"""What a prefill on a CPU holds at once is what the plan counts for it, whatever the prompts' lengths."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from holding import LENGTHS, SPECS, Held, storages
from toy_models import random_model

from thinkfast.engine.plan import make_plan, mixer_bytes, prefill_bytes
from thinkfast.engine.runner import Runner
from thinkfast.models.ragged import Ragged

F32 = 4


# Chunks of the recurrence have 32 tokens at most: what is a little longer, and as short as can be, is padded most.
SHORT = {"behind a chunk": [33] * 31, "and single": [33] * 30 + [1] * 30, "single": [1] * 200, "halves": [17] * 60}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS | SHORT)
@pytest.mark.parametrize("name", SPECS)
def test_a_prefill_holds_no_more_than_is_planned(name: str, lengths: str, dtype: torch.dtype) -> None:
    spec, lens, size = SPECS[name], (LENGTHS | SHORT)[lengths], dtype.itemsize
    plan = make_plan(spec, len(lens), max(lens) + 1, size, None)
    runner = Runner(random_model(spec).to(dtype), plan, frozenset())
    prompts = [[i % spec.vocab_size for i in range(length)] for length in lens]
    with Held() as held:
        runner.prefill(prompts)
    # Beside the pass: logits, twice while they are handed to their prompts, and the states left behind.
    left = len(lens) * (2 * spec.vocab_size * size + spec.state_bytes(F32))
    planned = sum(lens) * prefill_bytes(spec, size) + len(lens) * mixer_bytes(spec, size)
    assert held.most - left < 1.005 * planned
    if dtype == torch.float32 and lengths in LENGTHS:
        # The rest is what padding to twice as many would take.
        assert held.most - left > 0.27 * planned


@pytest.mark.parametrize("name", SPECS)
def test_the_last_piece_of_a_prompt_holds_no_more_than_is_planned(name: str) -> None:
    """Behind as many pages: all that the plan has beside a pass's own is what it reads of them."""
    spec, length = replace(SPECS[name], max_positions=1 << 15), 100 * 64 + 66
    plans = [make_plan(spec, 1, length, F32, None) for length in (2, length)]
    runner = Runner(random_model(spec), plans[1], frozenset())
    (handle,) = runner.prefill([[1] * 6400])
    with Held() as held:
        runner.extend(handle, [2] * 64)
    behind = plans[1].work_bytes - plans[0].work_bytes
    left = 2 * spec.vocab_size * F32 + spec.state_bytes(F32)
    assert held.most - left < 1.005 * (64 * prefill_bytes(spec, F32) + behind)


def test_keys_and_values_are_kept_without_what_they_were_made_in() -> None:
    """Of 16 heads and 4 of keys, in 4 layers: views would keep six times as much."""
    spec = SPECS["wide heads"]
    with torch.inference_mode():
        _, states = random_model(spec).prefill(torch.ones(103, dtype=torch.int64), Ragged(torch.tensor([100, 3])))
    held = sum(storage.nbytes() for storage in storages([(state.k, state.v) for state in states]))
    assert held == 103 * spec.kv_bytes_per_token(F32)
