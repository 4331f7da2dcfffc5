"""How benchmarks run: tiny and quick under pytest by default, at full size with COFITUNE_BENCH=full or as scripts.

Only a full run under pytest writes benchmarks/results/: figures of tiny tensors say nothing about memory bandwidth.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from contest import describe, devices
from provenance import save

FULL = os.environ.get("COFITUNE_BENCH") == "full"
ROUNDS = 7 if FULL else 2  # of the benchmarks of a single op
RESULTS = Path(__file__).parent / "results"
Compare = Callable[..., Iterator[dict[str, Any]]]

each_device = pytest.mark.parametrize("device", devices(), ids=lambda device: device.type)


def waiting(work: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`work`, and then what it left to the GPU to do: pytest-benchmark reads the host's clock."""

    def call(*args: Any) -> Any:
        result = work(*args)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return result

    return call


def hold(name: str, contests: Iterator[dict[str, Any]], path: str | Path | None) -> None:
    """Hold the contests; print each result as it comes, and save all there are so far if `path` is given."""
    results = []
    for result in contests:
        results.append(result)
        print(describe(result), flush=True)
        if path:
            save(path, name, results)


def contest_of(name: str, compare: Compare, device: torch.device, benchmark: Any) -> None:
    """A contest as one benchmark: `compare(device, quick, rounds)`. A full run keeps NAME.json, or NAME_cuda.json."""
    options = {} if FULL else {"quick": True, "rounds": 2}
    path = RESULTS / f"{name}{'_cuda' * (device.type == 'cuda')}.json" if FULL else None
    benchmark.pedantic(lambda: hold(name, compare(device, **options), path), rounds=1)


def script(name: str, about: str, compare: Compare, **options: str) -> None:
    """A contest as a program. options: further options of `compare`, each a string or None, with its help."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--device", default=devices()[-1].type, help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--rounds", type=int, help="how often the sides take turns")
    parser.add_argument("--quick", action="store_true", help="tiny tensors: whether it runs, not how fast")
    parser.add_argument("--json", help="file for the results with their provenance")
    for option, text in options.items():
        parser.add_argument(f"--{option}", help=text)
    given = vars(parser.parse_args())
    device, path = torch.device(given.pop("device")), given.pop("json")
    hold(name, compare(device, **{key: value for key, value in given.items() if value is not None}), path)
