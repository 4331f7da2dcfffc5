"""How much memory a piece of work takes: on a GPU what torch allocates, on a CPU the resident memory of the process."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

_PROCESS = Path("/proc/self")
_Result = TypeVar("_Result")


def _resident(field: str) -> int:
    lines = (_PROCESS / "status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


@cache
def _set_aside() -> None:
    """Let the collector pass over all that is loaded by now: looking through it takes longer than a small contest."""
    gc.collect()
    gc.freeze()


def held(device: torch.device) -> int | None:
    """Bytes in use now; None where the system does not tell (a CPU not under Linux)."""
    _set_aside()
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory goes back to the system and is not counted
        return _resident("VmRSS")
    except (OSError, AttributeError, StopIteration):
        return None


def holds(make: Callable[[], _Result], device: torch.device) -> tuple[_Result, dict[str, int]]:
    """What `make` returns, and {"held_bytes"} it keeps; empty where that cannot be told."""
    before = held(device)
    result = make()
    after = held(device)
    return result, {} if before is None or after is None else {"held_bytes": after - before}


def adds(work: Callable[[], object], device: torch.device) -> dict[str, int]:
    """{"peak_bytes"}: the peak during one call above what is in use before it; empty where that cannot be told.

    Linux lets a process reset its high-water mark (proc(5), clear_refs).
    """
    before = held(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return {"peak_bytes": torch.cuda.max_memory_allocated(device) - before}
    try:
        (_PROCESS / "clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        before = None
    work()
    return {} if before is None else {"peak_bytes": max(0, _resident("VmHWM") - before)}
