"""The fastest algorithm is chosen, once, and remembered; what is remembered never costs a run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import torch
from torch import Tensor

from thinkfast.engine.cuda import products as module
from thinkfast.engine.cuda.products import SWITCH, TORCH, Choices, Products
from thinkfast.kernels.cublaslt import Shape, reference

A, B, C, D = (bytes([n]) * 64 for n in (1, 2, 3, 4))
CPU = torch.device("cpu")


def calls(count: int = 3) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Products of one shape with different weights."""
    make = torch.Generator().manual_seed(2)
    x, out = torch.randn(3, 5, generator=make), torch.zeros(3, 4)
    return [(x, torch.randn(4, 5, generator=make), out) for _ in range(count)]


class Library:
    """cuBLASLt's place: algorithms by the ms they take, None for torch's product."""

    version = 1

    def __init__(self, monkeypatch: pytest.MonkeyPatch, took: dict[bytes | None, float]) -> None:
        self.took, self.ran, self.timed = took, [], []  # type: ignore[var-annotated]
        self.broken: bytes | None = None
        self.varied: dict[bytes, list[bytes]] = {}
        self.wants: set[bytes] = {one for one in took if one}

        def recorded(run: Any, some: Sequence[Any]) -> bytes | None:
            self.ran.clear()
            run(some[0])
            return self.ran[-1] if self.ran else None

        def seconds(algorithm: bytes | None) -> float:
            self.timed.append(algorithm)
            return self.took[algorithm]

        monkeypatch.setattr(module, "load", lambda: self)
        monkeypatch.setattr(module, "serves", lambda *operands: True)
        monkeypatch.setattr(module, "WORKSPACE", 1)
        monkeypatch.setattr(module, "_recorded", recorded)
        monkeypatch.setattr(module, "_seconds", seconds)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
        monkeypatch.delenv(SWITCH, raising=False)

    def problem(self, shape: Shape) -> Library:
        return self

    def algorithms(self) -> list[bytes]:
        """D is a variant only."""
        return [one for one in self.took if one and one != D]

    def variants(self, algorithm: bytes) -> list[bytes]:
        return self.varied.get(algorithm, [])

    def takes(self, algorithm: bytes) -> bool:
        return algorithm in self.wants

    def run(self, algorithm: bytes, x: Tensor, weight: Tensor, out: Tensor, workspace: Tensor) -> None:
        if algorithm == self.broken:
            raise RuntimeError
        self.ran.append(algorithm)


def products(store: Path | None) -> Products:
    """On a device that calls itself a GPU; its workspace is the CPU's."""

    class Gpu:
        type = "cuda"

    empty = torch.empty
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", lambda *size, **rest: empty(*size, dtype=rest["dtype"]))
        return Products(Gpu(), store)  # type: ignore[arg-type]


def learned(store: Path | None) -> Products:
    """Which has seen and chosen."""
    made = products(store)
    for call in calls():
        made(*call)
    made.learn()
    return made


def names_of(store: Path) -> list[str]:
    """Of the products that are known."""
    return [name for names in json.loads(store.read_text()).values() for name in names]


def chosen(made: Products, library: Library) -> bytes | None:
    """What a product goes to; None for torch."""
    library.ran.clear()
    made(*calls(1)[0])
    return library.ran[-1] if library.ran else None


@pytest.mark.parametrize(
    ("took", "want"),
    [
        ({None: 5.0, A: 4.0, B: 3.0, C: 6.0}, B),
        ({None: 3.0, A: 4.0}, None),
        ({None: 4.0, A: 3.99}, None),  # within what two runs differ by
        ({None: 4.0}, None),
    ],
)
def test_the_fastest_is_chosen(
    took: dict[bytes | None, float], want: bytes | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = Library(monkeypatch, took)
    assert chosen(learned(tmp_path / "products.json"), library) == want


@pytest.mark.parametrize(("of", "want"), [(A, D), (B, D), (C, A)])
def test_variants_of_the_fastest_are_tried_too(
    of: bytes, want: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_VARIED", 2)
    library = Library(monkeypatch, {None: 5.0, A: 4.0, B: 4.1, C: 4.9, D: 3.0})
    library.varied[of] = [C, D]
    assert chosen(learned(tmp_path / "products.json"), library) == want
    # C is named, and a variant: it is timed once.
    assert len(library.timed) == len(set(library.timed)) * module._ROUNDS


def test_one_that_does_not_run_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(monkeypatch, {None: 5.0, A: 4.0, B: 3.0})
    library.broken = B
    assert chosen(learned(None), library) == A


def test_until_it_has_been_measured_a_product_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(monkeypatch, {None: 5.0, A: 4.0})
    made = products(None)
    for x, weight, out in calls():
        made(x, weight, out)
        torch.testing.assert_close(out, x @ weight.t())
        made(x, weight, out, add=True)
        torch.testing.assert_close(out, 2 * (x @ weight.t()))
    assert not library.ran
    made.learn()
    library.ran.clear()
    made(*calls(1)[0], add=True)
    assert library.ran == [A]


def test_what_is_known_is_not_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = tmp_path / "made" / "products.json"
    library = Library(monkeypatch, {None: 5.0, A: 4.0, B: 3.0})
    learned(store)
    assert library.timed
    library.timed.clear()
    library.took = {None: 5.0, A: 3.0, B: 4.0}
    assert chosen(learned(store), library) == B
    library.took = {None: 1.0, A: 3.0, B: 4.0}
    assert chosen(learned(store), library) == B
    assert not library.timed
    # Another version of the library, or another card, knows nothing of it.
    library.version = 2
    assert chosen(learned(store), library) is None
    library.timed.clear()
    assert chosen(learned(store), library) is None  # that torch's is best is known as well
    assert not library.timed


@pytest.mark.parametrize("content", ["", '{"card, cuBLASLt 1": {"', "[]", '{"card, cuBLASLt 1": 3}', "\xff"])
def test_a_file_that_makes_no_sense_is_as_good_as_none(
    content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = tmp_path / "products.json"
    store.write_bytes(content.encode("latin-1"))
    library = Library(monkeypatch, {None: 5.0, A: 4.0})
    assert chosen(learned(store), library) == A
    assert list(json.loads(store.read_text())["card, cuBLASLt 1"].values()) == [A.hex()]


@pytest.mark.parametrize("value", ["", "zz", A.hex()[:-1], 7, None, [A.hex()]])
def test_a_choice_that_makes_no_sense_is_made_again(
    value: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = tmp_path / "products.json"
    library = Library(monkeypatch, {None: 5.0, A: 4.0})
    learned(store)
    content = json.loads(store.read_text())
    store.write_text(json.dumps({machine: dict.fromkeys(names, value) for machine, names in content.items()}))
    assert chosen(learned(store), library) == A
    assert json.loads(store.read_text()) == content


def test_where_nothing_can_be_written_the_choice_stands_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    library = Library(monkeypatch, {None: 5.0, A: 4.0})
    assert chosen(learned(tmp_path / "file" / "products.json"), library) == A


def test_two_processes_keep_what_both_have_found(tmp_path: Path) -> None:
    store = tmp_path / "products.json"
    one, two, other = Choices(store, "card"), Choices(store, "card"), Choices(store, "another card")
    assert one.keep("x", TORCH) == TORCH
    assert two.keep("y", A.hex()) == A.hex()
    assert other.keep("x", B.hex()) == B.hex()
    for now in (one, two, Choices(store, "card")):
        assert (now.get("x"), now.get("y"), now.get("z")) == (TORCH, A.hex(), None)
    assert Choices(store, "another card").get("x") == B.hex()
    # The first is everyone's; of what is of no use another takes the place.
    assert two.keep("x", C.hex()) == TORCH
    assert two.keep("y", C.hex(), instead=A.hex()) == C.hex()
    assert one.get("y") == C.hex()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["products.json", "products.lock"]


WRITER = """
import sys
from pathlib import Path
from thinkfast.engine.cuda.products import Choices
store, who = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for name in [*(f"{who} {n}" for n in range(20)), "all"]:
    Choices(store, "card").keep(name, "01" * 64)
"""


def test_no_choice_of_processes_that_write_at_once_is_lost(tmp_path: Path) -> None:
    store, writers = tmp_path / "products.json", ("0", "1", "2")
    start = [sys.executable, "-c", WRITER, str(store)]
    there = [subprocess.Popen([*start, who], stdin=PIPE, stdout=PIPE, text=True) for who in writers]
    for process in there:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in there:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in there:
        process.communicate()
        assert process.returncode == 0
    found = json.loads(store.read_text())["card"]
    assert found.keys() == {f"{who} {n}" for who in writers for n in range(20)} | {"all"}


def test_of_two_that_measure_at_once_the_first_ones_choice_is_everyones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = tmp_path / "products.json"
    library = Library(monkeypatch, {None: 5.0, A: 4.0, B: 4.5})
    learned(store)
    (name,) = names_of(store)
    store.unlink()
    fastest = Products._fastest

    def meanwhile(*asked: Any) -> bytes | None:
        Choices(store, "card, cuBLASLt 1").keep(name, B.hex())
        return fastest(*asked)

    monkeypatch.setattr(Products, "_fastest", meanwhile)
    assert chosen(learned(store), library) == B


@pytest.mark.parametrize("refuses", ["takes", "run"])
def test_a_kept_algorithm_is_launched_before_it_is_captured(
    refuses: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that the library does not take, or takes and does not run, is measured anew, once."""
    store = tmp_path / "products.json"
    library = Library(monkeypatch, {None: 5.0, A: 4.0, B: 3.0})
    learned(store)
    library.ran.clear()
    learned(store)
    assert library.ran == [B]
    if refuses == "run":
        library.broken = B
    else:
        library.wants, library.took = {A}, {None: 5.0, A: 4.0}
    assert chosen(learned(store), library) == A
    library.timed.clear()
    assert chosen(learned(store), library) == A
    assert not library.timed


def test_switched_off_all_go_to_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = Library(monkeypatch, {None: 5.0, A: 4.0})
    monkeypatch.setenv(SWITCH, "0")
    assert chosen(learned(tmp_path / "products.json"), library) is None
    assert not library.timed
    assert not list(tmp_path.iterdir())


def test_a_cpu_has_torchs(tmp_path: Path) -> None:
    made = Products(CPU, tmp_path / "products.json")
    for x, weight, out in calls():
        made(x, weight, out)
        torch.testing.assert_close(out, x @ weight.t())
    made.learn()
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.parametrize("add", [False, True])
def test_what_is_chosen_is_right_and_chosen_again(add: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make, store = torch.Generator("cuda").manual_seed(3), tmp_path / "products.json"
    x = torch.randn(512, 2048, device="cuda", generator=make).bfloat16()
    weights = [torch.randn(2048, 2048, device="cuda", generator=make).bfloat16() * 2048**-0.5 for _ in range(12)]
    start = torch.randn(512, 2048, device="cuda", generator=make).bfloat16()
    out = start.clone()

    def after(made: Products) -> Tensor:
        for weight in weights:
            made(x, weight, out, add)
        made.learn()
        out.copy_(start)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made(x, weights[3], out, add)
        graph.replay()
        return out.clone()

    found = after(Products(x.device, store))
    reference(x.float(), weights[3].float(), want := start.float(), add)
    assert (found.float() - want).norm() / want.norm() < 4e-3
    assert len(json.loads(store.read_text())) == 1
    monkeypatch.setattr(Products, "_fastest", None)
    assert torch.equal(after(Products(x.device, store)), found)
