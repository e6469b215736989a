"""What tests of memory plans share: models of published proportions, and what is held while one of them runs."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from thinkfast.models.spec import ModelSpec

# Of Llama-3.2's proportions, the 1B's and the 3B's, and one in which attention is wider than anything else.
SMALL = ModelSpec(48, 64, 4, 1, 16, 256, ("attention",) * 4, tie_embeddings=False, max_positions=1024)
SPECS = {
    "1b": SMALL,
    "3b": replace(SMALL, d_model=96, n_heads=6, n_kv_heads=2),
    "wide heads": replace(SMALL, n_heads=16, n_kv_heads=4, d_ff=64),
}
SPECS |= {
    f"{name} {kind}": SPECS[name].as_student(keep, 16)
    for name in SPECS
    for kind, keep in (("hybrid", (1,)), ("pure", ()))
}
LENGTHS = {"alike": [250] * 4, "ragged": [400, 250, *[2] * 175], "one": [1000], "uneven": [400, *[150] * 4]}


def storages(values: Any) -> list[torch.UntypedStorage]:
    """Of the tensors among an operation's arguments, or its results."""
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


class Held(TorchDispatchMode):
    """The most bytes of tensors that were there at once, of those made under it. A storage counts as long as a tensor
    on it is known, views of what was there before not at all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._sizes: dict[int, int] = {}
        self._users: Counter[int] = Counter()

    def _left(self, storage: int) -> None:
        self._users[storage] -= 1
        if not self._users[storage]:
            del self._users[storage], self._sizes[storage]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {storage._cdata for storage in storages((args, kwargs))} - self._sizes.keys()
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor) and (place := value.untyped_storage()._cdata) not in before:
                self._sizes[place] = value.untyped_storage().nbytes()
                self._users[place] += 1
                weakref.finalize(value, self._left, place)
        self.most = max(self.most, sum(self._sizes.values()))
        return out
