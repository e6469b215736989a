"""Draws the figures and tables of docs/ and README.md from results/*.json, between markers that pages do not show.

`<!--= bench-cpu engine_vs_transformers.tiny .1f -->3.5<!--/-->` is one figure: file, path in it, format.
`<!--= table parity smollm2 qwen0.5b -->…<!--/-->` is a table of TABLES with its arguments.

    python benchmarks/draw_docs.py            # rewrite what is stale
    python benchmarks/draw_docs.py --check    # exit 1 if anything is (a test does this)
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"(<!--= (?P<what>[^>]+?) -->)(?P<shown>.*?)(<!--/-->)", re.DOTALL)


@cache
def result(stem: str) -> Any:
    """A file of results/."""
    return json.loads((ROOT / "results" / f"{stem}.json").read_text())


def figure(stem: str, path: str, form: str = "") -> str:
    """One value; steps of the path, between slashes where a key has a dot, are keys or places in a list."""
    value = result(stem)
    for step in path.split("/" if "/" in path else "."):
        value = value[int(step)] if isinstance(value, list) else value[step]
    return format(value, form)


def parity(*stems: str) -> str:
    """The rows of parity reports, one column each: figure and, where it did not pass, what it came to."""
    reports = [result(f"parity-{stem}") for stem in stems]
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for column, report in enumerate(reports):
        for check in report["checks"]:
            against = re.sub(r" \d+(\.\d+)+\S*", "", check["against"])
            shown = "not run" if check["value"] is None else f"{check['value']:.2g}"
            if check["status"] == "broken":
                shown += f" (bound {check['bound']:g}: broken)"
            rows.setdefault((f"{check['name']} | {against}", f"{check['bound']:g} {check['unit']}"), {})[column] = shown
    lines = [[name, bound, *(cells.get(i, "–") for i in range(len(stems)))] for (name, bound), cells in rows.items()]
    return table(["row | against", "bound", *stems], lines)


def voters(stem: str) -> str:
    """Points over the majority by voter and number of chains, with intervals."""
    found = result(stem)["at_k"]
    names = [name for name in next(iter(found.values())) if name != "majority"]
    lines = []
    for k, row in found.items():
        if k != "1":
            cells = [(row[name]["over_majority"], *row[name]["over_majority_interval"]) for name in names]
            shown = [" to ".join(f"{100 * x:+.1f}" for x in ends) for _, *ends in cells]
            points = [f"{100 * value:+.1f} ({ends})" for (value, *_), ends in zip(cells, shown, strict=True)]
            lines.append([k, f"{row['majority']['accuracy']:.1%}", *points])
    return table(["chains", "majority", *names], lines)


def stopping(stem: str) -> str:
    """Points of accuracy lost against all samples, and samples saved, by stop rule, on the test log."""
    lines = []
    for name, row in result(stem)["early_stopping"]["test"].items():
        low, high = row["lost_points_interval"]
        lines.append(
            [f"`{name}`", f"{row['fewer_samples']:.0%}", f"{row['lost_points']:.2f} ({low:.2f} to {high:.2f})"]
        )
    return table(["rule", "fewer samples", "points lost"], lines)


def reallocation(stem: str) -> str:
    """Accuracy at equal seconds by allocator, in points over uniform, with intervals and p-values."""
    lines = []
    for row in result(stem)["equal_seconds"]:
        cells = [
            f"{100 * row[name]['minus_uniform']:+.2f} ({100 * row[name]['interval'][0]:+.2f} to "
            f"{100 * row[name]['interval'][1]:+.2f}), p = {row[name]['p_value']:.3f}"
            for name in ("early stop", "posterior", "learned")
        ]
        lines.append([f"{row['seconds']:g} s", f"{row['uniform']['accuracy']:.1%}", *cells])
    return table(["seconds", "uniform", "early stop", "posterior", "learned"], lines)


def teaches(name: str) -> bool:
    """Whether a model of the GPU tables is a teacher."""
    return "/" not in name


def of_vllm(lines: Sequence[dict[str, Any]]) -> dict[tuple[str, int, int, int], float]:
    """vLLM's tokens per second by its model's name, B, P and O; the fastest run of a cell that ran more than once."""
    best: dict[tuple[str, int, int, int], float] = {}
    for one in lines:
        key = one["model"], one["B"], one["P"], one["O"]
        best[key] = max(best.get(key, 0.0), one["tok_s"])
    return best


def plain(stem: str, fp8: bool = False) -> dict[tuple[str, int, int, int], dict[str, Any]]:
    """Our cells of one sample a prompt, all at once, with bf16 states, by model, B, P and O; the last run of each."""
    return {
        (one["model"], one["B"], one["P"], one["O"]): one
        for one in result(stem)["ours"]
        if one["samples"] == 1 and one["rows"] == one["B"] and one["state"] == "bf16" and one["fp8_weights"] == fp8
    }


def gpu(stem: str = "gpu-engine") -> str:
    """Every cell of one sample a prompt, beside vLLM's of the same lease and the fastest of all leases."""
    found, cells = result(stem), plain(stem)
    here = of_vllm(found["vllm"])
    fastest = of_vllm([*found["vllm"], *found.get("vllm_elsewhere", [])])
    columns = {"vLLM": here, "vLLM's fastest lease": fastest} if here else {}
    lines = []
    for name, *at in sorted(cells, key=lambda key: (key[1:], not teaches(key[0]), key[0])):
        one = cells[name, *at]
        step = one["decode_ms_per_step"]
        share = one["bound_ms_per_step"] / step
        line = ["{} / {} / {}".format(*at), name, f"{one['tok_s']:,.0f}", f"{step:.2f}", f"{share:.0%}"]
        for theirs in columns.values():
            other = theirs.get((VLLM.get(name, name), *at))
            line.append(f"{other:,.0f} ({one['tok_s'] / other:.2f}x)" if other else "")
        teachers = {key[0]: each["tok_s"] for key, each in cells.items() if key[1:] == tuple(at) and teaches(key[0])}
        best = max([*teachers.values(), *(here.get((VLLM.get(one, one), *at), 0.0) for one in teachers)], default=0.0)
        lines.append([*line, f"{one['tok_s'] / best:.2f}x" if best else ""])
    head = ["B / P / O", "model", "tokens/s", "ms a step", "share of the bound", *columns, "against the best teacher"]
    return table(head, lines)


def few_rows(stem: str) -> str:
    """Tokens per second by model and rows, the median of all runs, of which some cells have many; against the
    teacher's.
    """
    speeds: dict[tuple[str, int], list[float]] = {}
    for one in result(stem)["ours"]:
        speeds.setdefault((one["model"], one["B"]), []).extend(one["B"] * one["O"] / took for took in one["runs"])
    speed = {key: statistics.median(each) for key, each in speeds.items()}
    (teacher,) = {name for name, _ in speed if teaches(name)}
    rows = sorted({b for _, b in speed})
    lines = []
    for name in sorted({name for name, _ in speed}, key=lambda each: (not teaches(each), each)):
        cells = [(speed[name, b], speed[name, b] / speed[teacher, b], len(speeds[name, b])) for b in rows]
        lines.append([name, *(f"{own:,.0f} ({ratio:.3f}x, {runs} runs)" for own, ratio, runs in cells)])
    return table(["model", *(f"{b} rows" for b in rows)], lines)


def prototype(stem: str) -> str:
    """A step of the 100-line prototype at a fixed context beside ours at the same one on average, in one lease."""
    found = result(stem)
    best: dict[tuple[str, int, int, int], float] = {}
    for one in found["prototype"]:
        key = one["kind"], int(one["B"]), int(one["context"]), int(one["d_state"])
        best[key] = min(best.get(key, float("inf")), float(one["ms"]))
    names = {"teacher": "", "hyb4": "/hybrid4", "hyb2": "/hybrid2", "pure": "/pure"}
    lines = []
    for (kind, b, context, d_state), ms in best.items():
        for one in plain(stem).values():
            name = f"llama-3.2-1b{names[kind]}" + ("" if kind == "teacher" else f"-d{d_state}")
            if one["model"] == name and one["B"] == b and (kind == "pure" or one["P"] + one["O"] // 2 == context):
                own = one["decode_ms_per_step"]
                cell = f"{b} / {one['P']} / {one['O']}"
                lines.append([name, cell, f"{ms:.2f}", f"{own:.2f}", f"{ms / own:.2f}x"])
    return table(["model", "B / P / O", "prototype, ms a step", "ours", "ours faster by"], sorted(lines))


def queues(stem: str) -> str:
    """Tokens per second of queues longer than the batch."""
    lines = []
    for one in result(stem)["queues"]:
        late = f"{one['late_ms']:.0f} ms" if "late_ms" in one else ""
        longest = f"{one['longest_prefill_ms']:.0f} ms"
        pieces = f", {one['between_steps']:,} between steps" if one["between_steps"] else ""
        lines.append([
            one["model"].split(":")[-1], one["kind"] + pieces, f"{one['requests']:,} / {one['prompt']} / {one['new']}",
            f"{one['tok_s']:,.0f}", f"{one['rows_per_step']:.0f} of {one['rows']}", f"{one['prefill_tokens']:,}",
            longest, late, str(one["lease"]),
        ])  # fmt: skip
    head = ["model", "queue", "prompts / tokens of one / new", "tokens/s", "rows a step", "tokens prefilled"]
    return table([*head, "longest prefill", "past the deadline", "lease"], lines)


def profile(stem: str) -> str:
    """Where a step goes by ncu, a column for each cell: each part's microseconds, and the bound's."""
    cells = result(stem)["cells"]
    parts = dict.fromkeys(name for cell in cells for name in cell["parts"])
    lines = []
    for name in parts:
        found = [cell["parts"].get(name) for cell in cells]
        lines.append([name, *("" if part is None else f"{part['us']:.0f} ({part['bound_us']:.0f})" for part in found)])
    sums = [sum(part["us"] for part in cell["parts"].values()) for cell in cells]
    lines.append(["all", *(f"{s:,.0f} ({1e3 * cell['bound_ms']:,.0f})" for s, cell in zip(sums, cells, strict=True))])
    for name, key in (("in the engine, first 30 steps", "first_ms"), ("in the engine, after seconds of work", "ms")):
        lines.append([name, *(f"{1e3 * cell[key]:,.0f}" for cell in cells)])
    lines.append(["clock and power there", *(f"{c['clock_mhz']:.0f} MHz, {c['power_watts']:.0f} W" for c in cells)])
    return table(["µs", *(f"{cell['model'].split(':')[-1]}, {cell['rows']} rows" for cell in cells)], lines)


def eight_bits(stem: str) -> str:
    """Tokens per second with the blocks' weights in eight bits by model and cell, against the same model in bf16 and
    against the teacher in eight bits.
    """
    rounded, whole = plain(stem, fp8=True), plain(stem)
    places = sorted({key[1:] for key in rounded})
    (teacher,) = {key[0] for key in rounded if teaches(key[0])}
    lines = []
    for model in sorted({key[0] for key in rounded}, key=lambda each: (not teaches(each), each)):
        cells = []
        for at in places:
            own = rounded[model, *at]["tok_s"]
            ratios = own / whole[model, *at]["tok_s"], own / rounded[teacher, *at]["tok_s"]
            cells.append(f"{own:,.0f} ({ratios[0]:.2f}x, {ratios[1]:.2f}x)")
        lines.append([model, *cells])
    return table(["model", *("{} / {} / {}".format(*at) for at in places)], lines)


def rounding(*stems: str) -> str:
    """What weights in eight bits change: distributions on written solutions, greedy answers."""
    lines = []
    for stem in stems:
        found = result(stem)
        d, given = found["distributions"], found.get("answers")
        right = ["", ""]
        if given:
            before, after = given.values()
            right = [f"{before['accuracy']:.1%} to {after['accuracy']:.1%}", f"{after['changed']:.1%}"]
        about = [f"{d['kl']:.5f}", f"{d['same_top']:.2%}", f"{d['loss']:.4f} to {d['loss_fp8']:.4f}"]
        lines.append([found["model"], f"{found['count']} of {found['problems']}", *about, *right])
    head = ["model", "problems", "KL, nats", "same likeliest token", "loss, nats a token"]
    return table([*head, "greedy answers right", "changed"], lines)


VLLM = {
    "llama-3.2-1b": "llama-1b",
    "llama-3.2-3b": "llama-3b",
    "llama-3.2-1b/pure-d64": "pure-1b",
    "llama-3.2-1b/hybrid4-d64": "hybrid-1b",
}
"""Our names of models to those of vllm_bench.py."""
TABLES: dict[str, Callable[..., str]] = {
    "parity": parity,
    "gpu": gpu,
    "eight_bits": eight_bits,
    "few_rows": few_rows,
    "profile": profile,
    "prototype": prototype,
    "queues": queues,
    "rounding": rounding,
    "voters": voters,
    "stopping": stopping,
    "reallocation": reallocation,
}


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a cell's bar splits it in two columns."""
    rows = [head, ["---"] * len(" | ".join(head).split(" | ")), *lines]
    return "\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n\n"


def drawn(text: str) -> str:
    """``text`` with every marked place as results/ has it now."""

    def fresh(match: re.Match[str]) -> str:
        kind, *rest = match["what"].split()
        shown = TABLES[rest[0]](*rest[1:]) if kind == "table" else figure(kind, *rest)
        return f"{match[1]}{shown}{match[4]}"

    return MARK.sub(fresh, text)


def main() -> None:
    """Rewrite, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text()
        if (new := drawn(text)) != text:
            stale.append(page.name)
            if not check:
                page.write_text(new)
    print("stale:" if check else "redrawn:", ", ".join(stale) or "nothing")
    sys.exit(bool(stale and check))


if __name__ == "__main__":
    main()
