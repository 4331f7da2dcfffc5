"""Progress of a command: a bar on a terminal, sparse lines elsewhere, so that no log is silent for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from rich.console import Console, ConsoleRenderable, Group, RenderHook
from rich.live import Live
from rich.text import Text

from ..progress import Task, under_way

FIRST, EVERY = 10.0, 20.0
"""Seconds without a line after which the first and each later line about a piece of work is written."""
_LOOK = 1.0  # seconds between two looks at the work
_BAR = 30  # columns


class SparseLines:
    """Writes what is being done where nothing was written for a while.

    Args:
        say: writes a line.
        otherwise: what is being done where no room has announced it.
        clock: seconds, monotonic.
    """

    def __init__(
        self, say: Callable[[str], None], otherwise: Callable[[], str] = lambda: "Working",
        clock: Callable[[], float] = time.monotonic,
    ):
        self._say, self._otherwise, self._clock = say, otherwise, clock
        self._told: Task | None = None
        self.heard()

    def heard(self) -> None:
        """Take note of a line that was written."""
        self._heard = self._clock()

    def look(self) -> None:
        """Write a line if the silence has lasted long enough; call it about once a second."""
        tasks = under_way()
        innermost = tasks[-1] if tasks else None
        patience = EVERY - _LOOK if self._told is not None and self._told is innermost else FIRST
        if self._clock() - self._heard >= patience:
            self._told = innermost
            self.heard()
            self._say(" › ".join(map(str, tasks)) or self._otherwise())

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look about once a second, from a thread of its own, for the time of the block."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(_LOOK):
                with suppress(OSError):  # nobody reads any more
                    self.look()

        thread = threading.Thread(target=watch, name="cofitune progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


class _Ear(RenderHook):
    """Tells sparse lines of everything that a console prints."""

    def __init__(self, lines: SparseLines):
        self._lines = lines

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        self._lines.heard()
        return renderables


class Bars:
    """The work under way as lines with bars, drawn anew whenever rich refreshes."""

    def __rich__(self) -> Group:
        return Group(*map(_bar, under_way()[-3:]))


def _bar(task: Task) -> Text:
    if not task.total:
        return Text(f"{task} …", style="dim", no_wrap=True, overflow="ellipsis")
    full = round(_BAR * min(1.0, task.done / task.total))
    words = f" {task.done:,} of {task.total:,} {task.unit}".rstrip()
    return Text.assemble(f"{task.title} ", ("━" * full, "green"), ("━" * (_BAR - full), "dim"), words,
                         (f"  {task.note}", "dim"), no_wrap=True, overflow="ellipsis")


@contextmanager
def shown_progress(console: Console, lines: SparseLines | None = None) -> Iterator[None]:
    """Show the work under way for the time of the block: bars on a terminal, else `lines`; a quiet console shows none.

    Standard output stays free for results.
    """
    if console.quiet:
        yield
    elif console.is_terminal:
        with Live(Bars(), console=console, refresh_per_second=4, transient=True, redirect_stdout=False):
            yield
    else:
        lines = lines or SparseLines(partial(console.print, markup=False, highlight=False, soft_wrap=True))
        console.push_render_hook(_Ear(lines))
        try:
            with lines.running():
                yield
        finally:
            console.pop_render_hook()
