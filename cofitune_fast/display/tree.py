"""Display as a live tree in the terminal: the stages, the search's levels, and a line for each node."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.spinner import Spinner
from rich.text import Text
from rich.tree import Tree

from ..search import Candidate, Level, Node
from .progress import Bars
from .texts import duration, name, rung_text, scores_text, short_scores

_AROUND = 14  # terminal lines reserved for the stages, the other levels and the last line
_CLOSED = 4  # lines shown of a finished level while the search goes on


@dataclass
class Line:
    """Line of a node; `goal` is the fraction it is being trained to, None while it waits."""

    name: str
    node: Node | None = None
    goal: float | None = None
    from_journal: bool = False

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key, best first: how far the node was trained, then its figure there."""
        return (self.node.fraction, self.node.figure) if self.node else (0.0, float("-inf"))


@dataclass
class LevelLines:
    """Nodes of one level as aligned lines, each dropped node followed by the reason."""

    title: str
    display: TreeDisplay
    lines: dict[str, Line] = field(default_factory=dict)
    spinner: Spinner = field(default_factory=lambda: Spinner("dots"))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = list(self.lines.items())
        room = len(lines) if self.display.ended else (
            max(_CLOSED, console.height - _AROUND) if self.display.open is self else _CLOSED)
        best_first = sorted(lines, key=lambda item: (item[1].goal is not None, item[1].rank), reverse=True)
        shown = {key for key, _ in best_first[:room]}
        width = max(len(line.name) for _, line in lines)
        heading = f"{self.title} ({len(lines)} nodes)"
        yield Text(f"{heading:{width + 8}}" + "  Spec   Vers   Uni              time", style="italic")
        for key, line in lines:
            if key in shown:
                yield self._text(key, line, width, console)
                if line.node and line.node.dropped:
                    yield Padding(Text(f"dropped {line.node.dropped}", style="dim"), (0, 0, 0, 6))
        if len(shown) < len(lines):
            yield Text(f"  … and {len(lines) - len(shown)} more", style="dim")

    def _text(self, key: str, line: Line, width: int, console: Console) -> Text:
        node, best = line.node, self.display.best
        running = line.goal is not None
        mark = self.spinner.render(console.get_time()) if running else Text("·" if node is None else
                                                                              "✗" if node.dropped else "✓")
        rung = rung_text(line.goal) if running else rung_text(node.fraction) if node else ""
        text = Text.assemble(mark, f" {line.name:{width}}  {rung:>5}")
        if node is not None:
            text.append(f" {short_scores(node.scores)}")
            text.append(f"  {'journal' if line.from_journal else duration(node.seconds)}", style="dim")
            if node.dropped:
                text.stylize("dim")
            elif best is not None and best.id == key:
                text.stylize("green")
        return text


class TreeDisplay:
    """Live tree of the stages, and under the search its levels and nodes; below it the best node so far and the time.
    """

    def __init__(self, console: Console):
        self.console, self.began = console, time.perf_counter()
        self.tree = Tree("[bold]CoFiTune[/bold]", guide_style="dim", hide_root=True)
        self.current = self.tree
        self.open: LevelLines | None = None
        self.best: Node | None = None
        self.left: float | None = None
        self.ended = False

    @contextmanager
    def running(self) -> Iterator[None]:
        with Live(self, console=self.console, refresh_per_second=4, transient=False):
            try:
                yield
                self._settle()
            finally:
                self.ended, self.left = True, None

    def __rich__(self) -> Group:
        lines = [f"{duration(time.perf_counter() - self.began)} so far"]
        if self.left:
            lines[0] += f", about {duration(self.left)} left"
        if self.best is not None:
            part = f" at {rung_text(self.best.fraction)}" if self.best.fraction < 1 else ""
            lines.append(f"best so far{part}: {name(self.best)}  {scores_text(self.best.scores)}")
        return Group(self.tree, Bars(), Text("\n".join(lines), style="bold"))

    def stage(self, title: str) -> None:
        self._settle()
        self.current = self.tree.add(Spinner("dots", text=Text(title)))
        self._title = title

    def note(self, text: str) -> None:
        self.current.add(Text(text, style="dim"))

    def level(self, level: Level, candidates: list[Candidate]) -> None:
        lines = {candidate.id: Line(name(candidate)) for candidate in candidates}
        self.open = LevelLines(level.name, self, lines)
        self.current.add(self.open)

    def rung(self, fraction: float, candidates: list[Candidate]) -> None:
        """Ignore the event, because each running node shows its own rung."""

    def start(self, candidate: Candidate, fraction: float) -> None:
        self.open.lines[candidate.id].goal = fraction

    def finish(self, node: Node, best: Node, from_journal: bool) -> None:
        line = self.open.lines[node.id]
        line.node, line.goal, line.from_journal = node, None, from_journal
        self.best = best

    def drop(self, node: Node) -> None:
        """Ignore the event, because the node's line reads `node.dropped`."""

    def chosen(self, node: Node, sentence: str) -> None:
        self.best = node
        self.current.add(Text(sentence, style="bold"))

    def remaining(self, seconds: float | None) -> None:
        self.left = seconds

    def _settle(self) -> None:
        self.open = None
        if self.current is not self.tree:
            self.current.label = Text(f"✓ {self._title}")
