"""Which runner a model gets: the captured one where its device and sizes allow, else the plain one.

Usage: ``plan = plan_for(model, 64, 1024); runner = make_runner(model, plan, eos_ids)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from thinkfast.engine import runner
from thinkfast.engine.cache import PromptHandle, Usage
from thinkfast.engine.pages import Ints, Moves
from thinkfast.engine.plan import MemoryPlan
from thinkfast.engine.rows import Said
from thinkfast.engine.runner import Runner, Start
from thinkfast.errors import InputError
from thinkfast.kernels.available import triton_works
from thinkfast.models.decoder import Decoder
from thinkfast.models.fp8 import weight_bytes
from thinkfast.models.loading import Loaded
from thinkfast.models.padding import with_d_state
from thinkfast.models.room import available_memory
from thinkfast.models.spec import ModelSpec

LEAST_SIZE = 16  # that a kernel's product takes of a head, or of its state


class AnyRunner(Protocol):
    """What a session asks of a runner; see engine.runner.Runner. Codes may be those of the step before."""

    def add_stop_table(self, table: Tensor) -> int:
        """The number of a table of tokens that may complete a stop string."""
        ...

    def prepare(self, filters: bool) -> None:
        """Do beforehand what the first step of each batch size would do, for rows with ``filters`` or without."""
        ...

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[PromptHandle]:
        """Run prompts and keep their states."""
        ...

    def extend(self, prompt: PromptHandle, tokens: Sequence[int]) -> PromptHandle:
        """Run the next tokens of a prompt whose tokens so far fill whole pages; what it then is."""
        ...

    def prefilled(self) -> Mapping[PromptHandle, float] | None:
        """Seconds on the device of prefills that have ended since last asked, by what their first prompt then was; None
        where ``prefill`` ends with its work.
        """
        ...

    def fork(self, starts: Sequence[Start]) -> Ints:
        """Add rows; their codes, or none where they come with the next step's."""
        ...

    def step(self) -> Ints:
        """One token for every row; one code for every row."""
        ...

    def said(self, rows: Sequence[int]) -> list[Said]:
        """What rows have generated, up to the codes that have been returned."""
        ...

    def release(self, rows: Sequence[int]) -> Moves:
        """Take rows out."""
        ...

    def close(self, prompt: PromptHandle) -> None:
        """No more forks of this prompt."""
        ...

    @property
    def path(self) -> str:
        """What runs a step."""
        ...

    @property
    def usage(self) -> Usage:
        """What is held now."""
        ...


def fitted(loaded: Loaded) -> Loaded:
    """``loaded`` with as many states a head as the captured runner asks for (the next power of two, at least 16), where
    that is all that keeps a student from it. It says the same, and is planned and told as what it runs as.
    """
    spec, device = loaded.spec, loaded.model.head_weight.device
    if not spec.is_student or captured(spec, device):
        return loaded
    wider = replace(spec, d_state=max(LEAST_SIZE, 1 << (spec.d_state - 1).bit_length()))
    if not captured(wider, device):
        return loaded
    return replace(loaded, spec=wider, model=with_d_state(loaded.model, wider.d_state))


def captured(spec: ModelSpec, device: torch.device) -> bool:
    """Whether the captured runner can run a model of these sizes on this device."""
    if device.type != "cuda" or not triton_works(device):
        return False
    sizes = [spec.head_dim, *([spec.d_state] if spec.is_student else [])]
    return all(size >= LEAST_SIZE and size & (size - 1) == 0 for size in sizes)


def plan_for(model: Decoder, max_batch: int, max_len: int | None, state_dtype: torch.dtype | None = None) -> MemoryPlan:
    """The memory plan of the runner that ``model`` gets. Errors: as make_plan."""
    weight = model.head_weight
    if captured(model.spec, weight.device):
        from thinkfast.engine.cuda.folding import folded_bytes
        from thinkfast.engine.cuda.plan import make_cuda_plan

        state = weight.dtype if state_dtype is None else state_dtype
        available, packed = available_memory(weight.device), folded_bytes(model)
        plan = make_cuda_plan(model.spec, max_batch, max_len, weight.dtype, state, available, packed)
    else:
        plan = runner.plan_for(model, max_batch, max_len)
    return replace(plan, weight_bytes=weight_bytes(model))


def make_runner(model: Decoder, plan: MemoryPlan, eos_ids: frozenset[int], keep_hidden: bool = False) -> AnyRunner:
    """The runner for ``model`` within a plan of ``plan_for``; the captured one keeps no hidden states.

    Errors: InputError where the model is on another GPU than torch's current one, on which kernels would be launched.
    """
    device = model.head_weight.device
    if captured(model.spec, device):
        from thinkfast.engine.cuda.runner import CudaRunner

        if device.index != (current := torch.cuda.current_device()):
            raise InputError(
                f"the model is on {device}, and kernels would be launched on cuda:{current}",
                remedy=f"set CUDA_VISIBLE_DEVICES={device.index} and use cuda",
            )
        return CudaRunner(model, plan, eos_ids)
    return Runner(model, plan, eos_ids, keep_hidden)
