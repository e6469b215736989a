from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from thinkfast.distill.optim import Optimiser
from thinkfast.distill.recipe import StageConfig


def config(**changes: Any) -> StageConfig:
    return StageConfig(**({"name": "align", "tokens": 1000, "batch_tokens": 100, "lr": 1e-2} | changes))


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(32, 24), (24, 16), (200, 16), (40, 4), (24,), (6,)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def step(optimiser: Optimiser, found: list[nn.Parameter]) -> None:
    for p in found:
        p.grad = None
    sum(((p - 1) ** 2).sum() for p in found).backward()
    optimiser.step()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_in_one_group_and_moves(name: str) -> None:
    found = parameters()
    optimiser = Optimiser(found, config(optimiser=name), fused=False)
    grouped = [id(p) for part in optimiser.parts for group in part.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(map(id, found))
    before = [p.detach().clone() for p in found]
    step(optimiser, found)
    assert all(not torch.equal(p, b) for p, b in zip(found, before, strict=True))


def test_muon_takes_matrices_only() -> None:
    found = parameters()
    parts = Optimiser(found, config(optimiser="muon"), fused=False).parts
    assert [p.shape for p in parts[1].param_groups[0]["params"]] == [(32, 24), (24, 16)]
    assert len(Optimiser(found, config(), fused=False).parts) == 1


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_spares_vectors(name: str) -> None:
    found = parameters()
    optimiser = Optimiser(found, config(optimiser=name, weight_decay=0.1), fused=False)
    before = [p.detach().clone() for p in found]
    for p in found:
        p.grad = torch.zeros_like(p)
    optimiser.step()
    for p, b in zip(found, before, strict=True):
        torch.testing.assert_close(p.detach(), b * (1 - 0.1 * 1e-2) if p.dim() >= 2 else b)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_rate_is_that_of_every_group(name: str) -> None:
    optimiser = Optimiser(parameters(), config(optimiser=name), fused=False)
    optimiser.set_lr(3e-4)
    assert {group["lr"] for part in optimiser.parts for group in part.param_groups} == {3e-4}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_vectors_may_go_faster(name: str) -> None:
    optimiser = Optimiser(parameters(), config(optimiser=name, vector_lr=4.0), fused=False)
    optimiser.set_lr(1e-3)
    for part in optimiser.parts:
        for group in part.param_groups:
            assert {p.dim() < 2 for p in group["params"]} == {group["lr"] == pytest.approx(4e-3)}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_going_on_from_a_saved_state_is_going_on(name: str) -> None:
    ones, others = parameters(), parameters()
    first, second = (Optimiser(p, config(optimiser=name), fused=False) for p in (ones, others))
    for _ in range(3):
        step(first, ones)
    for p, saved in zip(others, ones, strict=True):
        p.data.copy_(saved.data)
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # as from a file: torch would share the tensors
    for _ in range(3):
        step(first, ones)
        step(second, others)
    assert all(torch.equal(p, q) for p, q in zip(ones, others, strict=True))


def test_a_state_of_another_optimiser_is_refused() -> None:
    adamw, muon = (Optimiser(parameters(), config(optimiser=n), fused=False) for n in ("adamw", "muon"))
    with pytest.raises(ValueError, match="another optimiser"):
        adamw.load_state_dict(muon.state_dict())
