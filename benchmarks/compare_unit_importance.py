"""Importance of the output neurons of one linear layer: our reduction against autograd through a gate of ones.

python benchmarks/compare_unit_importance.py [--json benchmarks/results/unit_importance.json]

Both sides run the same forward and backward of y = x W^T, W frozen. Ours hooks y and adds |sum over tokens of y dy| per
sample; the gate multiplies y by a vector of ones per sample. The cost is what each adds to neither's time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from bandwidth import copy_bandwidth, settle_threads
from provenance import save

from cofitune_fast.ops import unit_importance_

FULL = {"batch": 4, "tokens": 512, "width": 576, "out": 1536}  # up_proj of SmolLM2-135M
QUICK = {"batch": 2, "tokens": 16, "width": 32, "out": 64}


def sides(batch: int, tokens: int, width: int, out: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    x = torch.randn(batch, tokens, width).to(dtype).requires_grad_()
    weight = torch.randn(out, width).mul_(width**-0.5).to(dtype)
    upstream = torch.randn(batch, tokens, out).to(dtype)
    scores = torch.zeros(out)

    def ours() -> None:
        y = x @ weight.T
        output = y.detach()
        y.register_hook(lambda grad: add(output, grad))
        y.backward(upstream)

    def add(output: torch.Tensor, grad: torch.Tensor) -> None:
        unit_importance_(scores, output, grad)

    def gate() -> None:
        ones = torch.ones(batch, 1, out, dtype=dtype, requires_grad=True)
        ((x @ weight.T) * ones).backward(upstream)
        scores.add_(ones.grad.float().abs().sum((0, 1)))

    def neither() -> None:
        (x @ weight.T).backward(upstream)

    output = (x @ weight.T).detach()
    return {"ours": ours, "gate": gate, "neither": neither, "reduction": lambda: add(output, upstream)}


def measure(sizes: dict[str, int], dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Alternate all sides `rounds` times after a warm-up; "reduction" is the op alone, at its counted bytes."""
    settled = settle_threads()
    works = sides(**sizes, dtype=dtype)
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    elements = sizes["batch"] * sizes["tokens"] * sizes["out"]
    moved = 2 * elements * dtype.itemsize
    copy = copy_bandwidth(64)
    return {
        "name": f"unit importance, {str(dtype).removeprefix('torch.')}", **sizes, "rounds": rounds, **settled,
        "median_ms": {name: 1e3 * value for name, value in median.items()},
        "added_ms": {name: 1e3 * (median[name] - median["neither"]) for name in ("ours", "gate")},
        "bytes_per_element": 2 * dtype.itemsize, "gb_per_s": moved / median["reduction"] / 1e9,
        "copy_gb_per_s": copy / 1e9, "of_copy_bandwidth": moved / median["reduction"] / copy,
    }


def describe(row: dict[str, Any]) -> str:
    ms, added = row["median_ms"], row["added_ms"]
    return (
        f"{row['name']} (y is {row['batch']}x{row['tokens']}x{row['out']}, threads: {row['threads']}): forward and "
        f"backward {ms['neither']:.2f} ms; ours adds {added['ours']:.2f} ms, the gate {added['gate']:.2f} ms; the "
        f"reduction alone {ms['reduction']:.2f} ms = {row['gb_per_s']:.1f} GB/s, {row['of_copy_bandwidth']:.0%} of copy"
    )


def compare(sizes: dict[str, int], rounds: int) -> list[dict[str, Any]]:
    return [measure(sizes, dtype, rounds) for dtype in (torch.float32, torch.bfloat16)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="file for the results with their provenance")
    arguments = parser.parse_args()
    rows = compare(FULL, arguments.rounds)
    print("\n".join(map(describe, rows)))
    if arguments.json:
        save(arguments.json, "unit_importance", rows)


if __name__ == "__main__":
    main()
