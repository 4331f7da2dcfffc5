"""Peak memory of a piece of work, as the machine itself counts it."""

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
    """Context manager; afterwards `.bytes` is the peak inside the block and `.measure` says of what.

    On a GPU: bytes allocated by PyTorch on the current device. On a CPU: resident memory of the whole process; Linux
    lets the high-water mark be reset (proc(5), clear_refs), elsewhere the mark is that of the process's life so far.
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
    """Give freed heap pages back, so that one run's garbage does not count as the next one's peak (glibc only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
