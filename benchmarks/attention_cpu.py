"""Forms of a decode step's attention on this CPU, side by side in one run: why the engine multiplies pages in place.

Legend: R rows, H heads, P head dim, L tokens of context, W tokens a page.

Four layers take turns, so that no form finds its keys in a cache; forms take turns too, and a figure is the median of
its rounds. Ratios are to reading the keys and values once.

Usage: ``python benchmarks/attention_cpu.py --threads 1 --out results/attention-cpu.json``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from publish import publish
from torch import Tensor

R, H, P, W, LAYERS, ROUNDS = 64, 5, 32, 64, 4, 15


def forms(length: int) -> dict[str, Callable[[int], object]]:
    """Each form's products with keys and values of layer i, softmax left out: it is the same for all."""
    pages = R * length // W
    k, v = ([torch.randn(R, H, length, P) for _ in range(LAYERS)] for _ in range(2))
    turned = [t.transpose(2, 3).contiguous() for t in k]
    paged_k, paged_v = (
        [torch.randn(pages * H, P, W) for _ in range(LAYERS)],
        [torch.randn(pages * H, W, P) for _ in range(LAYERS)],
    )
    q, weights = torch.randn(R, H, 1, P), torch.rand(R, H, 1, length)
    paged_q, paged_weights = torch.randn(pages * H, 1, P), torch.rand(pages * H, 1, W)
    table = torch.randperm(pages)

    def gathered(i: int) -> tuple[Tensor, Tensor]:
        keys = paged_k[i].view(pages, -1)[table].view(R, -1, H, P, W)
        values = paged_v[i].view(pages, -1)[table].view(R, -1, H, W, P)
        whole_k = keys.permute(0, 2, 3, 1, 4).reshape(R * H, P, length)
        whole_v = values.permute(0, 2, 1, 3, 4).reshape(R * H, length, P)
        return torch.bmm(q.flatten(0, 1), whole_k), torch.bmm(weights.flatten(0, 1), whole_v)

    return {
        "read keys and values once": lambda i: (k[i].sum(), v[i].sum()),
        "pages in place, keys transposed": lambda i: (
            torch.bmm(paged_q, paged_k[i]),
            torch.bmm(paged_weights, paged_v[i]),
        ),
        "one buffer a row, keys transposed": lambda i: (
            torch.bmm(q.flatten(0, 1), turned[i].flatten(0, 1)),
            torch.bmm(weights.flatten(0, 1), v[i].flatten(0, 1)),
        ),
        "one buffer a row, keys as they come": lambda i: (
            torch.bmm(q.flatten(0, 1), k[i].flatten(0, 1).transpose(1, 2)),
            torch.bmm(weights.flatten(0, 1), v[i].flatten(0, 1)),
        ),
        "pages gathered, then one product": gathered,
        "scaled_dot_product_attention": lambda i: F.scaled_dot_product_attention(q, k[i], v[i]),
    }


def main() -> None:
    """Time every form at a few lengths, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    found: dict[str, dict[str, float]] = {}
    for length in options.lengths:
        candidates = forms(length)
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(ROUNDS + 2):
            for name, form in candidates.items():
                began = time.perf_counter()
                for i in range(LAYERS):
                    form(i)
                seconds[name].append(time.perf_counter() - began)
        found[str(length)] = {name: statistics.median(runs[2:]) * 1e3 for name, runs in seconds.items()}
    for name in next(iter(found.values())):
        row = [at[name] / at["read keys and values once"] for at in found.values()]
        print(f"{name:<38}" + "".join(f"{ratio:8.2f}x" for ratio in row))
    result = {
        "command": f"python benchmarks/attention_cpu.py --threads {options.threads}",
        "sizes": {"rows": R, "heads": H, "head_dim": P, "page": W, "layers": LAYERS},
        "ms_per_step": found,
        "threads": options.threads,
    }
    publish(result, options.out)


if __name__ == "__main__":
    main()
