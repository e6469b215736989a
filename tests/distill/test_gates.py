from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from thinkfast.data.corpus import Corpus
from thinkfast.distill.gates import HELD_OUT_BATCHES, GateResult, check_gate, held_out_figure
from thinkfast.distill.recipe import StageConfig
from thinkfast.distill.stages import make_stage
from thinkfast.errors import GateError


def config(name: Any = "align", **changes: Any) -> StageConfig:
    return StageConfig(**({"name": name, "tokens": 5e4, "batch_tokens": 100, "lr": 3e-3} | changes))


@pytest.mark.parametrize(
    ("value", "bound", "higher", "passed"),
    [
        (0.2, 0.3, False, True),
        (0.3, 0.3, False, True),
        (0.31, 0.3, False, False),
        (0.9, 0.8, True, True),
        (0.8, 0.8, True, True),
        (0.79, 0.8, True, False),
        (99.0, None, False, True),
        (math.inf, 0.3, False, False),
        (math.nan, 0.3, False, False),
        (math.nan, 0.3, True, False),
        (math.nan, None, True, False),
    ],
)
def test_a_gate_passes_on_its_side_of_the_bound(value: float, bound: float | None, higher: bool, passed: bool) -> None:
    result = GateResult("align", "layer error", value, bound, higher)
    assert result.passed == passed
    if passed:
        assert check_gate(config(), result) is result
        return
    with pytest.raises(GateError):
        check_gate(config(), result)


def test_the_message_has_figure_bound_and_what_to_try() -> None:
    with pytest.raises(GateError) as caught:
        check_gate(config(), GateResult("align", "layer error", 0.51234, 0.3, False))
    assert "stage align failed its gate: align: layer error 0.5123 (gate <= 0.3)" in caught.value.message
    assert "50000" in caught.value.remedy
    assert "0.003" in caught.value.remedy
    assert str(GateResult("sft", "greedy accuracy", 0.5, 0.4, True)) == "sft: greedy accuracy 0.5000 (gate >= 0.4)"
    assert str(GateResult("sft", "greedy accuracy", 0.5, None, True)) == "sft: greedy accuracy 0.5000"


@pytest.mark.parametrize("name", ["orient", "align", "imitate"])
def test_the_held_out_figure_is_a_mean_over_the_first_batches(name: Any, make_model: Any, corpus: Corpus) -> None:
    stage = make_stage(config(name), make_model("hybrid", seed=1), make_model("teacher"))
    assert corpus.batches_per_epoch > HELD_OUT_BATCHES
    each = [stage.measure(corpus.batch(i)) for i in range(HELD_OUT_BATCHES)]
    assert held_out_figure(stage, corpus, torch.device("cpu")) == pytest.approx(sum(each) / HELD_OUT_BATCHES)
    assert len(set(each)) > 1


def test_few_held_out_examples_are_counted_once(make_model: Any, corpus: Corpus) -> None:
    stage = make_stage(config(), make_model("hybrid", seed=1), make_model("teacher"))
    whole = Corpus(corpus.pool, tokens_per_batch=10**6, seed=0)
    assert held_out_figure(stage, whole, torch.device("cpu")) == stage.measure(whole.batch(0))
