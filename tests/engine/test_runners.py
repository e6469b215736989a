"""Which runner a model gets."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from toy_models import ToyTokenizer, random_model

from thinkfast.engine import runners
from thinkfast.errors import InputError
from thinkfast.models.loading import Loaded
from thinkfast.models.spec import ModelSpec

TEACHER = ModelSpec(64, 32, 2, 1, 16, 32, ("attention",) * 2, max_positions=64)


def there(spec: ModelSpec) -> Loaded:
    return Loaded("toy", Path(), spec, random_model(spec), cast(Any, ToyTokenizer()), "")


@pytest.mark.parametrize(("has", "gets"), [(1, 16), (9, 16), (16, 16), (17, 32), (24, 32), (64, 64), (96, 128)])
def test_a_student_gets_as_many_states_as_kernels_take(has: int, gets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "triton_works", lambda device: True)
    given = there(TEACHER.as_student((1,), has))
    monkeypatch.setattr(runners, "captured", on_a_gpu := partial(as_if_on_a_gpu, runners.captured))
    got = runners.fitted(given)
    assert on_a_gpu(got.spec, torch.device("cpu"))
    assert (got.spec.d_state, got.model.spec) == (gets, got.spec)
    assert (got is given) == (has == gets)
    assert runners.fitted(got) is got


def as_if_on_a_gpu(captured: Callable[[ModelSpec, torch.device], bool], spec: ModelSpec, device: torch.device) -> bool:
    return captured(spec, torch.device("cuda"))


def test_what_the_captured_runner_cannot_have_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher; heads of a size that no states would mend; a CPU."""
    odd = there(TEACHER.as_student((1,), 9))
    assert runners.fitted(odd) is odd
    monkeypatch.setattr(runners, "triton_works", lambda device: True)
    monkeypatch.setattr(runners, "captured", partial(as_if_on_a_gpu, runners.captured))
    for spec in (TEACHER, replace(TEACHER, head_dim=12).as_student((1,), 9), replace(TEACHER, head_dim=12)):
        given = there(spec)
        assert runners.fitted(given) is given


def test_a_model_on_another_gpu_than_the_current_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels would be launched on a GPU that has none of its memory."""
    pytest.importorskip("triton", reason="triton comes with `make venv`, and with CUDA builds of torch")
    model = SimpleNamespace(spec=None, head_weight=SimpleNamespace(device=torch.device("cuda:1")))
    monkeypatch.setattr(runners, "captured", lambda spec, device: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(InputError, match="on cuda:1, and kernels would be launched on cuda:0") as caught:
        runners.make_runner(cast(Any, model), cast(Any, None), frozenset())
    assert "CUDA_VISIBLE_DEVICES=1" in caught.value.remedy
