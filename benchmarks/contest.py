"""A contest: several sides do their work in turn, round by round, and each figure is compared within its round.

A machine's memory may run at one speed now and at another a second later. What is compared is therefore measured within
one round, and what is reported is the median of the rounds' ratios, not the ratio of medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cofitune_fast.ops._registry import OPERATIONS

Times = list[list[float]]  # seconds by side and round


@dataclass
class Side:
    """One contestant. Sides of one `part` are compared with each other; those of part "bound" measure the memory."""

    name: str
    work: Callable[[], object]
    bytes: int = 0  # counted: what one call has to read and write
    part: str = ""
    before: Callable[[], object] | None = None  # outside the time, before each call
    bound: str | None = None  # name of the bound that the bytes per second are held against
    calls: int = 1  # how many calls in a row are timed together; times are per call
    baseline: bool = False  # the other sides of the part say how many times as fast as this one they are
    memory: dict[str, int] | None = None  # bytes: what the side holds, and what a call adds at its peak


def devices() -> list[torch.device]:
    return [torch.device(kind) for kind in ("cpu", "cuda") if kind == "cpu" or torch.cuda.is_available()]


def backends(name: str, device: torch.device) -> list[str]:
    """Of the op `name`: the backend chosen on a CPU, all that can run on a GPU."""
    op = OPERATIONS[name]
    if device.type == "cpu":
        return [op.choose("auto", device)]
    return [key for key, entry in op.backends.items() if entry.refusal(device) is None] or ["reference"]


def clock(side: Side, device: torch.device) -> float:
    """Seconds of one call. On a GPU between two events: where `before` keeps it busy, the time of launching is hidden
    behind that, as it is in training; what the work itself waits for counts."""
    if side.before is not None:
        side.before()
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
    start = time.perf_counter()
    for _ in range(side.calls):
        side.work()
    elapsed = time.perf_counter() - start
    if device.type == "cuda":
        end.record()
        end.synchronize()
        elapsed = 1e-3 * begin.elapsed_time(end)
    return elapsed / side.calls


def run_rounds(sides: Sequence[Side], rounds: int, device: torch.device) -> Times:
    """Each side once to warm up, then `rounds` rounds, in order and backward in turn, each beginning elsewhere."""
    times: Times = [[] for _ in sides]
    for number in range(-1, rounds):
        order = [(number + place) % len(sides) for place in range(len(sides))]
        for index in order if number % 2 else reversed(order):
            elapsed = clock(sides[index], device)
            if number >= 0:
                times[index].append(elapsed)
    return times


def rate(sides: Sequence[Side], times: Times, name: str) -> list[float]:
    """Bytes per second of the bound `name`, round by round: the best of the sides that share the name."""
    rates = [[side.bytes / t for t in ts] for side, ts in zip(sides, times, strict=True)
             if side.name == name and side.part == "bound"]
    return [max(values) for values in zip(*rates, strict=True)]


def summary(sides: Sequence[Side], times: Times, unit: int = 1) -> list[dict[str, Any]]:
    """One row per side that is no bound. `unit`: how many parameters (or elements) the counted bytes are divided by.

    A side called "neither" does what the others of its part have in common: then the time they add to it is told too.
    """
    rows = []
    for side, ts in zip(sides, times, strict=True):
        if side.part == "bound":
            continue
        named = {other.name: other_times for other, other_times in zip(sides, times, strict=True)
                 if other.part == side.part}
        row: dict[str, Any] = {"side": side.name, "part": side.part, "median_ms": 1e3 * statistics.median(ts),
                               "best_ms": 1e3 * min(ts), "times_ms": [round(1e3 * t, 4) for t in ts]}
        if side.bytes:
            row |= {"bytes_each": side.bytes / unit, "gb_per_s": 1e-9 * side.bytes / statistics.median(ts)}
            for key, name in (("of_copy", "copy"), ("of_bound", side.bound)):
                rates = rate(sides, times, name) if name else []
                if rates:
                    row[key] = statistics.median(side.bytes / t / best for t, best in zip(ts, rates, strict=True))
        if "neither" in named:
            row["added_ms"] = 1e3 * statistics.median(t - base for t, base in zip(ts, named["neither"], strict=True))
        row |= side.memory or {}
        row["times_as_fast_as"] = {
            other.name: statistics.median(theirs / own for own, theirs in zip(ts, named[other.name], strict=True))
            for other in sides if other.baseline and other.part == side.part and other is not side
        }
        rows.append(row)
    return rows


def bounds(sides: Sequence[Side], times: Times) -> dict[str, float]:
    """Name -> GB/s, median of the rounds, of every bound."""
    names = dict.fromkeys(side.name for side in sides if side.part == "bound")
    return {name: 1e-9 * statistics.median(rate(sides, times, name)) for name in names}


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "median_ms": ("median ms", "{:.2f}".format), "best_ms": ("best ms", "{:.2f}".format),
    "added_ms": ("added ms", "{:.2f}".format),
    "bytes_each": ("bytes", "{:.4g}".format), "gb_per_s": ("GB/s", "{:.1f}".format),
    "of_copy": ("of copy", "{:.0%}".format), "of_bound": ("of bound", "{:.0%}".format),
    "held_bytes": ("held MB", lambda value: f"{value / 2**20:.0f}"),
    "peak_bytes": ("adds MB", lambda value: f"{value / 2**20:.1f}"),
}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `summary` as aligned text, a column per figure that any of them has."""
    rivals = list(dict.fromkeys(name for row in rows for name in row["times_as_fast_as"]))
    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    lines = [["", *(COLUMNS[key][0] for key in keys), *(f"x {name}" for name in rivals)]]
    for row in rows:
        figures = [COLUMNS[key][1](row[key]) if key in row else "-" for key in keys]
        ratios = row["times_as_fast_as"]
        lines.append([row["side"], *figures, *(f"{ratios[name]:.2f}" if name in ratios else "-" for name in rivals)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  " + "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def describe(result: dict[str, Any]) -> str:
    """A result {"name", "device", "rounds", "threads", "bounds", "sides", ...}: a heading and a table per part."""
    where = f"{result['threads']} threads" if result["device"] == "cpu" else result["device"]
    memory = ", ".join(f"{name} {value:.1f}" for name, value in result.get("bounds", {}).items())
    lines = [f"\n{result['name']} ({where}, {result['rounds']} rounds)" + (f"; GB/s: {memory}" if memory else "")]
    for part in dict.fromkeys(row["part"] for row in result["sides"]):
        lines += [f" {part}:"] * bool(part) + [table([row for row in result["sides"] if row["part"] == part])]
    return "\n".join(lines)
