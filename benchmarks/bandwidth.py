"""The memory bandwidth of this machine now: what any kernel that only moves bytes could reach at best.

python benchmarks/bandwidth.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def seconds(work: Callable[[], object], repeats: int = 5) -> list[float]:
    """Wall-clock seconds of each of `repeats` calls, after one call to warm up; sorted."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)


def settle_threads() -> dict[str, float | int]:
    """Probe how long torch's smallest parallel work takes; where threads have to wait for a core, go on with one.

    On a shared machine every parallel region may wait a scheduler's time slice (8 ms have been seen for 0.5 MB) for its
    last thread. Code of many regions then seems slower by whatever factor, which says nothing about the code.

    Returns:
        The number of threads from here on, for all sides of a comparison, and the probe's milliseconds.
    """
    small = torch.zeros(1 << 17)
    probe = 1e3 * statistics.median(seconds(small.zero_, 31))
    if probe > 0.2 and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
    return {"threads": torch.get_num_threads(), "probe_ms": probe}


def copy_bandwidth(megabytes: int = 256) -> float:
    """Bytes per second, read plus written, of the fastest of five copies of one tensor into another.

    Most processors also read a line before they write it, which is not counted: work in place may exceed this figure.
    """
    source = torch.zeros(megabytes << 18)
    target = torch.empty_like(source).zero_()
    return 8 * source.numel() / seconds(lambda: target.copy_(source))[0]


def stream_bandwidth(megabytes: int = 256, streams: int = 3) -> float:
    """Bytes per second of an in-place multiplication over several tensors (read and written where they lie): nearer to
    an optimizer's pattern than a copy, as no line is written that was not read."""
    tensors = [torch.ones((megabytes << 18) // streams) for _ in range(streams)]
    return 8 * sum(t.numel() for t in tensors) / seconds(lambda: torch._foreach_mul_(tensors, 1.0))[0]


if __name__ == "__main__":
    probe = settle_threads()
    print(f"threads   {probe['threads']} (the smallest parallel work took {probe['probe_ms']:.3f} ms)")
    print(f"copy      {copy_bandwidth() / 1e9:6.1f} GB/s (read + written)")
    print(f"in place  {stream_bandwidth() / 1e9:6.1f} GB/s")
