"""The memory bandwidth of this machine now: what any kernel that only moves bytes could reach at best.

python benchmarks/bandwidth.py

A machine's bandwidth may change within seconds (shared hosts do that), so a contest measures it in every round
(`bandwidth_sides`) and reports fractions round by round.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from contest import Side, rate, run_rounds

COMPILE = ["-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
AHEAD = 2048  # bytes; the prefetch distance of one of the two passes tried
_folders: list[tempfile.TemporaryDirectory] = []  # kept until the process ends


def seconds(work: Callable[[], object], repeats: int = 5) -> list[float]:
    """Wall-clock seconds of each of `repeats` calls on the CPU, after one call to warm up; sorted."""
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


@cache
def _native() -> ctypes.CDLL | None:
    """streams.cpp, compiled for this processor; None without a compiler."""
    compiler = next(filter(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")), None)
    if compiler is None:
        return None
    _folders.append(tempfile.TemporaryDirectory(prefix="cofitune-bench-"))
    library = Path(_folders[-1].name) / "streams.so"
    source = Path(__file__).with_name("streams.cpp")
    done = subprocess.run([compiler, *COMPILE, source, "-o", library], capture_output=True, text=True)
    if done.returncode:
        print(f"streams.cpp does not compile here, the bound is torch's: {done.stderr.strip().splitlines()[-1]}")
        return None
    return ctypes.CDLL(str(library))


def moved(streams: Sequence[Sequence[torch.Tensor]], written: Sequence[bool]) -> int:
    """Bytes of all streams read once, and of those marked written once."""
    return sum((1 + out) * tensor.nbytes for stream, out in zip(streams, written, strict=True) for tensor in stream)


def toucher(
    streams: Sequence[Sequence[torch.Tensor]], written: Sequence[bool], ahead: int = 0
) -> Callable[[], None]:
    """A call that reads all of `streams` and writes those marked back as they were: one native pass on CPU tensors.

    Args:
        streams: lists of one length of contiguous CPU tensors; the k-th of each list have the same number of elements.
        written: per stream.
        ahead: prefetch distance in bytes; 0: what the processor does by itself.
    """
    tensors = [tensor for stream in streams for tensor in stream]
    arguments = (
        ctypes.c_int64(len(streams[0])), ctypes.c_int64(len(streams)),
        (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors)),
        (ctypes.c_int64 * len(streams[0]))(*(tensor.numel() for tensor in streams[0])),
        (ctypes.c_int64 * len(streams))(*(stream[0].element_size() for stream in streams)),
        (ctypes.c_uint8 * len(streams))(*written), ctypes.c_int64(ahead),
    )
    library = _native()

    def touch(alive: list[torch.Tensor] = tensors) -> None:  # the addresses are good as long as the tensors are held
        library.touch(*arguments, ctypes.c_int64(torch.get_num_threads()))

    return touch


def in_place_sides(
    name: str, streams: Sequence[Sequence[torch.Tensor]], written: Sequence[bool]
) -> list[Side]:
    """The bound of a pass over `streams`: the faster, round by round, of the sides returned, which share their name.

    On the CPU they move the very bytes of the pass and compute nothing. On a GPU, or without a compiler, torch's
    in-place multiplication by one stands for them; it writes all streams.
    """
    if streams[0][0].device.type == "cpu" and _native():
        return [Side(name, toucher(streams, written, ahead), moved(streams, written), part="bound")
                for ahead in (0, AHEAD)]
    floating = [t for stream in streams for t in stream if t.is_floating_point()]
    return [Side(name, lambda: torch._foreach_mul_(floating, 1.0), moved([floating], [True]), part="bound")]


def bandwidth_sides(device: torch.device, megabytes: int = 256) -> list[Side]:
    """"copy" of one tensor into another (read + written) and "read" (summed), each tensor of `megabytes`.

    Most processors also read a line before they write it, which is not counted: work in place may exceed a copy.
    """
    source = torch.zeros(megabytes << 18, device=device)
    target = torch.empty_like(source).zero_()
    read = (toucher([[source]], [False], AHEAD) if device.type == "cpu" and _native() else source.sum)
    calls = 4 if device.type == "cuda" else 1  # hides the launch of three
    return [Side("copy", lambda: target.copy_(source), 2 * source.nbytes, part="bound", calls=calls),
            Side("read", read, source.nbytes, part="bound", calls=calls)]


def bandwidths(device: torch.device, megabytes: int = 256, rounds: int = 7) -> dict[str, float]:
    """Name -> median over the rounds of bytes per second: copy, read, and in place on four streams, one only read."""
    four = [[torch.ones(megabytes << 16, device=device)] for _ in range(4)]
    sides = [*bandwidth_sides(device, megabytes), *in_place_sides("in place", four, (True, False, True, True))]
    times = run_rounds(sides, rounds, device)
    return {side.name: statistics.median(rate(sides, times, side.name)) for side in sides}


if __name__ == "__main__":
    probe = settle_threads()
    print(f"threads   {probe['threads']} (the smallest parallel work took {probe['probe_ms']:.3f} ms)")
    for kind in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for name, value in bandwidths(torch.device(kind)).items():
            print(f"{kind:6}{name:10}{value / 1e9:8.1f} GB/s")
