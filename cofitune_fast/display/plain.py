"""Display as plain lines, one per event, for logs and pipes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from ..search import Candidate, Level, Node
from .progress import SparseLines, shown_progress
from .texts import duration, name, rung_text, scores_text


class PlainDisplay:
    """Prints one line per event, with the seconds since the start."""

    def __init__(self, console: Console):
        self.console, self.began = console, time.perf_counter()
        self._title = "the beginning"
        self.raced = False  # rungs are mentioned only in levels that have several

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show for the time of the block what is being done between the events, see `shown_progress`."""
        lines = SparseLines(lambda text: self._line(f"  {text}"), lambda: f"still at: {self._title}")
        with shown_progress(self.console, lines):
            yield

    def _line(self, text: str) -> None:
        line = f"[{time.perf_counter() - self.began:6.0f} s] {text}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def stage(self, title: str) -> None:
        self._title = title
        self._line(title)

    def note(self, text: str) -> None:
        self._line(f"  {text}")

    def level(self, level: Level, candidates: list[Candidate]) -> None:
        self._line(f"  level {candidates[0].level + 1}, {level.name}: {len(candidates)} nodes")
        self.raced = False

    def rung(self, fraction: float, candidates: list[Candidate]) -> None:
        self.raced |= fraction < 1
        if self.raced:
            self._line(f"   up to {rung_text(fraction)} of the training: {len(candidates)} nodes")

    def start(self, candidate: Candidate, fraction: float) -> None:
        self._line(f"    {name(candidate)} ...")

    def finish(self, node: Node, best: Node, from_journal: bool) -> None:
        cost = "from the journal" if from_journal else duration(node.rungs[-1].cost["seconds"])
        self._line(f"    {name(node)}  {scores_text(node.scores)}  ({cost})  best so far: {name(best)}")

    def drop(self, node: Node) -> None:
        self._line(f"    {name(node)} dropped: {node.dropped}")

    def chosen(self, node: Node, sentence: str) -> None:
        self._line(f"  chosen: {name(node)}")
        self._line(f"  {sentence}")

    def remaining(self, seconds: float | None) -> None:
        if seconds:
            self._line(f"    about {duration(seconds)} left")
