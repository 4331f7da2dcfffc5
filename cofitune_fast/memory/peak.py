"""Peak memory of a block of code, as counted by PyTorch or the operating system."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path
from types import TracebackType

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class PeakMemory:
    """Context that measures peak memory. Afterwards `bytes` is the peak, and `measure` says which memory was counted.

    On a GPU it counts bytes allocated by PyTorch on the current device. On a CPU it counts the resident memory of the
    whole process. Linux can reset this high-water mark (proc(5), clear_refs); elsewhere it counts from the start of
    the process.
    """

    bytes: int = 0
    measure: str = ""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        self._cuda = torch.cuda.is_available()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            _return_free_memory()
            try:
                _CLEAR_REFS.write_text("5")
                self.measure = "resident memory of the process"
            except OSError:
                self.measure = "resident memory of the process since its start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._cuda:
            self.bytes = torch.cuda.max_memory_allocated()
            self.measure = "GPU memory allocated by PyTorch"
        else:
            self.bytes = _resident_high_water_mark()


def _resident_high_water_mark() -> int:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _return_free_memory() -> None:
    """Return freed heap pages to the system, so that they do not count in the next peak (glibc only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
