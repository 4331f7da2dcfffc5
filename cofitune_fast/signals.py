"""Signals that ask a process to end: SIGTERM (kill, SLURM, Kubernetes) and SIGHUP (a closed terminal) are as Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """A signal ends the program, as Ctrl-C does; `number` is the signal's."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_status(error: KeyboardInterrupt) -> int:
    """Return the exit status that a shell gives to a program ended by the signal: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + getattr(error, "number", signal.SIGINT)


def handled() -> list[int]:
    """Return the numbers of STOPPING that this process does not ignore, as it does SIGHUP under nohup.

    Only the main thread may handle signals; elsewhere the list is empty.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in STOPPING if signal.getsignal(number) not in (signal.SIG_IGN, None)]


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped inside the block on each of the signals."""
    def stop(number: int, frame: Any) -> None:
        raise Stopped(number)

    with _handler(stop):
        yield


@contextmanager
def held() -> Iterator[None]:
    """Let the block finish what it writes, after which the program ends anyway: only a second signal acts, at once."""
    came: list[int] = []

    def hold(number: int, frame: Any) -> None:
        if came:
            raise Stopped(number)
        came.append(number)

    with _handler(hold):
        yield


@contextmanager
def _handler(handler: Any) -> Iterator[None]:
    former = {number: signal.signal(number, handler) for number in handled()}
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)
