"""What the terminal shows while a pipeline runs: a live tree, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text
from rich.tree import Tree

from .search import Candidate, Level, Node


def scores_text(scores: dict[str, float]) -> str:
    """"Spec 0.612  Vers 0.534  Uni 1.146 ± 0.021"."""
    return (f"Spec {scores['spec']:.3f}  Vers {scores['vers']:.3f}  "
            f"Uni {scores['uni']:.3f} ± {scores['uni_se']:.3f}")


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class PlainDisplay:
    """One line per event, with the seconds since the start."""

    def __init__(self, console: Console):
        self.console, self.began = console, time.perf_counter()

    @contextmanager
    def running(self) -> Iterator[None]:
        yield

    def _line(self, text: str) -> None:
        line = f"[{time.perf_counter() - self.began:6.0f} s] {text}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def stage(self, title: str) -> None:
        self._line(title)

    def note(self, text: str) -> None:
        self._line(f"  {text}")

    def level(self, level: Level, candidates: list[Candidate]) -> None:
        self._line(f"  level {candidates[0].level + 1}, {level.name}: {len(candidates)} nodes")

    def start(self, candidate: Candidate) -> None:
        self._line(f"    {candidate.region} ...")

    def finish(self, node: Node, best: Node, from_journal: bool) -> None:
        cost = "from the journal" if from_journal else duration(node.seconds)
        self._line(f"    {node.region}  {scores_text(node.scores)}  ({cost})  best so far: {best.region}")

    def remaining(self, seconds: float | None) -> None:
        if seconds:
            self._line(f"    about {duration(seconds)} left")


class TreeDisplay:
    """A live tree: the stages, under the search its levels and nodes, and below it the best so far and the time."""

    def __init__(self, console: Console):
        self.console, self.began = console, time.perf_counter()
        self.tree = Tree("[bold]CoFiTune[/bold]", guide_style="dim")
        self.current = self.branch = self.tree
        self.running_node: Any = None
        self.best: Node | None = None
        self.left: float | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        with Live(self, console=self.console, refresh_per_second=4, transient=False):
            yield
            self._settle()
            self.left = None

    def __rich__(self) -> Group:
        line = f"{duration(time.perf_counter() - self.began)} so far"
        if self.left is not None:
            line += f", about {duration(self.left)} left"
        if self.best is not None:
            line += f"   best so far: {self.best.region}  {scores_text(self.best.scores)}"
        return Group(self.tree, Text(line, style="bold"))

    def stage(self, title: str) -> None:
        self._settle()
        self.current = self.branch = self.tree.add(Spinner("dots", text=Text(title)))
        self._title = title

    def note(self, text: str) -> None:
        self.current.add(Text(text, style="dim"))

    def level(self, level: Level, candidates: list[Candidate]) -> None:
        self.branch = self.current.add(Text(f"{level.name} ({len(candidates)} nodes)", style="italic"))

    def start(self, candidate: Candidate) -> None:
        self.running_node = self.branch.add(Spinner("dots", text=Text(str(candidate.region))))

    def finish(self, node: Node, best: Node, from_journal: bool) -> None:
        cost = "from the journal" if from_journal else duration(node.seconds)
        text = Text(f"{node.region}  {scores_text(node.scores)}  ")
        text.append(cost, style="dim")
        if node is best:
            text.stylize("green")
        if self.running_node is None:
            self.branch.add(text)
        else:
            self.running_node.label = text
        self.running_node, self.best = None, best

    def remaining(self, seconds: float | None) -> None:
        self.left = seconds

    def _settle(self) -> None:
        if self.current is not self.tree:
            self.current.label = Text(f"✓ {self._title}")


def make_display(console: Console) -> PlainDisplay | TreeDisplay:
    return TreeDisplay(console) if console.is_terminal else PlainDisplay(console)
