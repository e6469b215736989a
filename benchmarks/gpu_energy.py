"""What the parts of a decode step of many rows take of time and of energy on a GPU at its power limit.

    export PYTHONPATH=src
    python3 benchmarks/gpu_energy.py random:llama-3.2-1b/pure-d16:512 --out results/gpu-energy.json

Each is MODEL:ROWS, a student whose norms are folded into its products (engine/cuda/folding.py; more than 128 rows). A
part is launched over the layers' own weights and states in a CUDA graph, again and again for --seconds, so that the
chip gets as hot as in a step; then the whole step. Power is as the driver tells it (report/energy.py). At the power
limit a step's time is its energy over that power, so one that takes longer and less energy may make a step shorter.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_long import runner, timed
from publish import publish
from torch import Tensor

from thinkfast.engine.cuda.runner import CudaRunner
from thinkfast.engine.cuda.step import _Layer
from thinkfast.kernels.cuda.mixer import fused
from thinkfast.kernels.triton.gated import gated
from thinkfast.kernels.triton.mixer import MixerRows, MixerState, Undivided, mix
from thinkfast.kernels.triton.norm import inverse_rms
from thinkfast.kernels.triton.sampler import parts, scan
from thinkfast.models.loading import load_model
from thinkfast.report.energy import EnergyMeter, energy_meter

STEPS, LARGE = 4000, 8192
# Part: what it launches, of how many layers, operations of a layer's.
Parts = dict[str, tuple[Callable[[], None], int, float]]


def parts_of(run: CudaRunner, rows: int) -> Parts:
    """The kernels of a step of ``run``, by part."""
    step, state = run._decode, run.state
    layers = [layer for layer in step.layers if layer.folded.into is not None and layer.folded.gate_up is not None]
    if not layers:
        raise SystemExit("this needs a student whose norms are folded: more than 128 rows, and room for the copies")
    active = run.graphs.active[:rows]
    residual, mixed, inner = step.residual[:rows], step.mixed[:rows], step.inner[:rows]
    inverse, logits, undivided = step.inverse[:rows], step.logits[:rows], Undivided(step.residual[:rows], 1e-5)
    where = MixerRows(active, state.position, state.drawn, state.key)
    for x in (residual, mixed, inner):
        x.copy_(torch.randn_like(x))
    inverse.fill_(1.0)

    def projected(weight: Tensor) -> Tensor:
        return step.projected[: rows * weight.shape[0]].view(rows, weight.shape[0])

    def into() -> None:
        for layer in layers:
            step.products(residual, layer.folded.into.weight, projected(layer.folded.into.weight))

    def mixers(mixing: Callable[[_Layer, Tensor, MixerState], None]) -> Callable[[], None]:
        def launch() -> None:
            for layer in layers:
                mixing(layer, projected(layer.folded.into.weight), state.mixers[layer.number])
            state.drawn.add_(1)
            state.position.add_(1)

        return launch

    def by_triton(layer: _Layer, given: Tensor, own: MixerState) -> None:
        mix(given, layer.mixer, own, where, step.mixing, mixed, layer.number, undivided=undivided)

    def at_one(layer: _Layer, given: Tensor, own: MixerState) -> None:
        fused(given, layer.mixer, own, undivided)(where, mixed, layer.number)

    def out() -> None:
        for layer in layers:
            step.products(mixed, layer.block.mixer.out.weight, residual, add=True)

    def norms() -> None:
        for _ in layers:
            inverse_rms(residual, inverse, 1e-5)

    def gate_up() -> None:
        for layer in layers:
            gated(residual, layer.folded.gate_up, inner, inverse=inverse)

    def down() -> None:
        for layer in layers:
            step.products(inner, layer.block.mlp.down.weight, residual, add=True)

    def head() -> None:
        for first, end in parts(rows, step.spec.vocab_size, logits.element_size()):
            step.products(step.normed[:rows], step.model.head_weight[first:end], logits[:, first:end])

    def scans() -> None:
        scan(logits, step.sample_rows(active), step.work)

    big, other, product = (torch.randn(LARGE, LARGE, device="cuda").bfloat16() for _ in range(3))
    of, one = len(layers), layers[0]
    weights = {
        "into": one.folded.into.weight, "out": one.block.mixer.out.weight, "gate, up": one.folded.gate_up,
        "down": one.block.mlp.down.weight, "head": step.model.head_weight,
    }  # fmt: skip
    flops = {name: 2.0 * rows * weight.numel() for name, weight in weights.items()}
    found: Parts = {"into": (into, of, flops["into"]), "mixer, by Triton": (mixers(by_triton), of, 0.0)}
    if fused(projected(weights["into"]), one.mixer, state.mixers[one.number], undivided) is not None:
        found["mixer"] = (mixers(at_one), of, 0.0)
    return found | {
        "out": (out, of, flops["out"]), "norms": (norms, of, 0.0), "gate, up": (gate_up, of, flops["gate, up"]),
        "down": (down, of, flops["down"]), "head": (head, 1, flops["head"]), "scan": (scans, 1, 0.0),
        f"{LARGE} cubed": (lambda: torch.mm(big, other, out=product), 1, 2.0 * LARGE**3),
    }  # fmt: skip


def looped(launch: Callable[[], None], seconds: float, meter: EnergyMeter) -> tuple[float, float]:
    """Seconds and joules of one of ``launch``, in a graph."""
    launch()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()

    def replayed(times: int) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(times):
            graph.replay()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    replayed(3)
    times = max(1, round(seconds / 2 / replayed(3) * 3))
    replayed(times)
    mark = meter.mark()
    took = replayed(2 * times)
    return took / 2 / times, (meter.since(mark) or 0.0) / 2 / times


def measure(model: str, rows: int, seconds: float) -> list[dict[str, Any]]:
    """One cell: a line a part, the whole step last."""
    loaded = load_model(model, torch.bfloat16, "cuda")
    run = runner(loaded, rows, STEPS, "bf16", 0)
    timed(run, 30)
    found = []
    with energy_meter(torch.device("cuda", 0)) as meter:
        for name, (launch, layers, flops) in parts_of(run, rows).items():
            took, joules = looped(launch, seconds, meter)
            found.append({
                "part": name, "us": 1e6 * took / layers, "mj": 1e3 * joules / layers, "watts": joules / took,
                "pj_a_flop": 1e12 * joules / layers / flops if flops else None,
            })  # fmt: skip
        steps = min(STEPS // 3, round(1e3 * seconds / timed(run, 30)))
        timed(run, steps)
        mark = meter.mark()
        ms = timed(run, steps)
        joules = (meter.since(mark) or 0.0) / steps
        found.append(
            {"part": "step", "us": 1e3 * ms, "mj": 1e3 * joules, "watts": 1e3 * joules / ms, "pj_a_flop": None}
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="+", metavar="MODEL:ROWS")
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring a part, after half as long before")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this needs a CUDA GPU")
    cells = []
    with torch.inference_mode():
        for cell in options.cells:
            model, _, rows = cell.rpartition(":")
            lines = measure(model, int(rows), options.seconds)
            cells.append({"model": model, "rows": int(rows), "parts": lines})
            for line in lines:
                cost = f"{line['pj_a_flop']:.2f} pJ a FLOP" if line["pj_a_flop"] else ""
                print(
                    f"{line['part']:16} {line['us']:8.1f} us {line['mj']:8.2f} mJ {line['watts']:5.0f} W {cost}",
                    flush=True,
                )
    publish({"cells": cells}, options.out, unprinted=("cells",))


if __name__ == "__main__":
    main()
