"""The step's matrix products by what measures fastest: torch's choice, or another of cuBLASLt's algorithms.

A step that has not run with so many rows before runs once as nobody's (graphs.py). Products that are new then go to
torch and are noted, with the weights of all layers; ``learn`` times every algorithm over them, a graph of launches
each, so that weights come from memory as they do in a step. It happens once on a machine: what was chosen is kept in
the cache and chosen again, by other processes too, so that the same prompts and seeds give the same tokens.

Usage: ``products(x, weight, out)`` for out = x weight^T, ``products(x, weight, out, add=True)`` for out += x weight^T;
``products.learn()`` when no graph is being captured.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from thinkfast.errors import OutputError
from thinkfast.files import atomic_write
from thinkfast.kernels.cublaslt import WORKSPACE, Problem, Shape, load, reference, serves

# Set to 0 for torch's choice.
SWITCH = "THINKFAST_MEASURED_PRODUCTS"
# Launches in a row that are timed, at least and at most, and times they are: the fastest counts, since nothing makes a
# kernel faster.
_FEWEST, _MOST, _ROUNDS = 4, 16, 4
# Algorithms, the fastest, that are tried with other clusters too.
_VARIED = 3
# Torch's stays where another is not faster by this: figures of two runs differ by less.
_GAIN = 0.99
TORCH = "torch"
_ALGORITHM = re.compile("[0-9a-f]{128}")

Call = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """``algorithm`` None: torch's."""

    problem: Problem
    algorithm: bytes | None


class Products:
    """Products on ``device``; choices are kept in the file ``store``, None for not at all."""

    def __init__(self, device: torch.device, store: Path | None) -> None:
        self._lt = load() if device.type == "cuda" and os.environ.get(SWITCH) != "0" else None
        self._chosen: dict[Shape, _Chosen] = {}
        self._asked: dict[Shape, list[Call]] = {}
        if self._lt is None:
            return
        self._workspace = torch.empty(WORKSPACE, dtype=torch.uint8, device=device)
        name = torch.cuda.get_device_name(device)
        self._store = Choices(store, f"{name}, cuBLASLt {self._lt.version}")

    def __call__(self, x: Tensor, weight: Tensor, out: Tensor, add: bool = False) -> None:
        """out [B, N] = x [B, K] weight [N, K]^T, or with ``add`` that much more."""
        if self._lt is not None and serves(x, weight, out):
            shape = Shape.of(x, weight, out, add)
            chosen = self._chosen.get(shape)
            if chosen is None:
                self._asked.setdefault(shape, []).append((x, weight, out))
            elif chosen.algorithm is not None:
                chosen.problem.run(chosen.algorithm, x, weight, out, self._workspace)
                return
        reference(x, weight, out, add)

    def learn(self) -> None:
        """Choose for what has been asked for since the last time. What has been asked for is written over."""
        asked, self._asked = self._asked, {}
        if self._lt is None or not asked:
            return
        for shape, calls in asked.items():
            problem = self._lt.problem(shape)
            name = " ".join(str(one) for one in astuple(shape))
            known = self._store.get(name)
            if known is None or not self._runs(problem, known, calls[0]):
                algorithm = self._fastest(problem, shape, calls)
                found = TORCH if algorithm is None else algorithm.hex()
                # Another process may have chosen in the meantime: then its choice is everyone's.
                other = self._store.keep(name, found, instead=known)
                known = other if self._runs(problem, other, calls[0]) else found
            self._chosen[shape] = _Chosen(problem, None if known == TORCH else bytes.fromhex(known))

    def _runs(self, problem: Problem, known: str, call: Call) -> bool:
        """Whether what is known can be launched; after that its kernel is loaded, which a capture does not allow."""
        if known == TORCH:
            return True
        algorithm = bytes.fromhex(known)
        with suppress(RuntimeError):
            if problem.takes(algorithm):
                problem.run(algorithm, *call, self._workspace)
                return True
        return False

    def _fastest(self, problem: Problem, shape: Shape, calls: Sequence[Call]) -> bytes | None:
        """The algorithm, or None where torch's is as fast."""
        launches = (list(calls) * -(-_FEWEST // len(calls)))[-_MOST:]

        def run(algorithm: bytes | None, call: Call) -> None:
            if algorithm is None:
                reference(*call, shape.add)
            else:
                problem.run(algorithm, *call, self._workspace)

        def timed(algorithms: Iterable[bytes | None]) -> dict[bytes | None, float]:
            graphs = {}
            for algorithm in algorithms:
                # One that does not run is none; torch's has to.
                with suppress(RuntimeError) if algorithm else nullcontext():
                    graphs[algorithm] = _recorded(partial(run, algorithm), launches)
            took = [{algorithm: _seconds(graph) for algorithm, graph in graphs.items()} for _ in range(_ROUNDS)]
            return {algorithm: min(one[algorithm] for one in took) for algorithm in graphs}

        took = timed((None, *problem.algorithms()))
        ahead = sorted((one for one in took if one is not None), key=lambda one: took[one])[:_VARIED]
        variants = {variant for one in ahead for variant in problem.variants(one)}
        took |= timed(sorted(variants - took.keys()))
        best = min(took, key=lambda one: took[one])
        return best if took[best] < _GAIN * took[None] else None


def _recorded(run: Callable[[Call], None], launches: Sequence[Call]) -> torch.cuda.CUDAGraph:
    run(launches[0])  # loads its kernel, which a capture does not allow
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in launches:
            run(call)
    return graph


def _seconds(graph: torch.cuda.CUDAGraph) -> float:
    """Of one replay."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    graph.replay()  # the launch of the first is not hidden behind another
    began.record()
    graph.replay()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3


class Choices:
    """What was chosen on this ``machine``: names of products with algorithms in hexadecimal digits, in a JSON file."""

    def __init__(self, path: Path | None, machine: str) -> None:
        self._path, self._machine = path, machine

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            content = json.loads(self._path.read_text()) if self._path else {}
        except (OSError, ValueError):
            return {}
        # What another version, or a person, has written is as good as nothing.
        return content if isinstance(content, dict) and all(isinstance(one, dict) for one in content.values()) else {}

    def get(self, name: str) -> str | None:
        """What was chosen for a product, if it is known."""
        known = str(self._read().get(self._machine, {}).get(name))
        return known if known == TORCH or _ALGORITHM.fullmatch(known) else None

    def keep(self, name: str, chosen: str, instead: str | None = None) -> str:
        """Add a choice to the file, unless another process was first, and return what is there; ``instead`` of one that
        is of no use. Where it cannot be written, this process alone knows.
        """
        if self._path is None:
            return chosen
        with suppress(OutputError, OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.with_suffix(".lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if (known := self.get(name)) is not None and known != instead:
                    return known
                content = self._read()
                content[self._machine] = content.get(self._machine, {}) | {name: chosen}
                atomic_write(self._path, json.dumps(content, indent=1) + "\n")
        return chosen
