"""A Decoder without weights: the modules, names and shapes that a checkpoint is checked against and loaded into.

Why not ``with torch.device("meta")``: random initialisation and rotary tables on the meta device run through torch's
Python reference operators, whose first use imports its compiler: two seconds that loading a model can do without.

Usage: ``skeleton(spec).load_state_dict(tensors, assign=True)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from thinkfast.models.decoder import Decoder
from thinkfast.models.spec import ModelSpec


def skeleton(spec: ModelSpec) -> Decoder:
    """A Decoder whose parameters have shapes but no memory; its rotary frequencies are real."""
    with _Unfilled():
        return Decoder(spec)


class _Unfilled(TorchFunctionMode):
    """New tensors are made on the meta device, and initialising one does nothing."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func in (torch.empty, torch.zeros, torch.ones):
            return torch.empty(*args, **{**kwargs, "device": "meta"})
        return func(*args, **kwargs)
