"""A limit on the time of Python code that others wrote, such as a chat template."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_IDLE = 5.0  # seconds without a block after which the watching thread ends


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Context that raises TimeoutError in this thread if its block runs longer. It also ends a loop of Python code.

    A single call into C, such as the repetition of a text, is not interrupted; the error comes after it. This uses no
    signal, because signals belong to the main thread and to the user's program. One thread watches all blocks.
    """
    watch = _watch()
    block = [threading.get_ident(), time.monotonic() + seconds, False]
    watch.add(block)
    try:
        yield
    finally:
        watch.remove(block)


class _Watch:
    """The blocks of a process, each [thread, deadline, whether it was interrupted], and the thread that watches."""

    def __init__(self) -> None:
        self.process, self._blocks, self._running = os.getpid(), [], False
        self._changed = threading.Condition()

    def add(self, block: list) -> None:
        with self._changed:
            self._blocks.append(block)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="cofitune-time-limit", daemon=True).start()

    def remove(self, block: list) -> None:
        with self._changed:
            self._blocks = [other for other in self._blocks if other is not block]
            if block[2]:
                _raise_in(block[0], None)  # if the block ended in the same moment, the error must not come later

    def _run(self) -> None:
        used = time.monotonic()
        with self._changed:
            while True:
                now = time.monotonic()
                if self._blocks:
                    used = now
                elif now - used > _IDLE:
                    self._running = False
                    return
                for block in self._blocks:
                    if now > block[1] and not block[2]:
                        block[2] = True
                        _raise_in(block[0], ctypes.py_object(TimeoutError))
                self._changed.wait(0.1)  # ten looks a second; a block need not wake the thread


_WATCHES: list[_Watch] = []


def _watch() -> _Watch:
    """Return the watch of this process: a forked child has none of its parent's threads."""
    if not _WATCHES or _WATCHES[-1].process != os.getpid():
        _WATCHES[:] = [_Watch()]
    return _WATCHES[-1]


def _raise_in(thread: int, error: ctypes.py_object | None) -> None:
    """Let a thread raise an error at its next instruction; None takes back one that has not been raised."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)
