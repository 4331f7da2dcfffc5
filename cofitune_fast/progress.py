"""Progress of long work: a room says what it is doing and how far it is; whoever shows it reads `under_way`.

Nothing is printed here. The displays of the command line look at `under_way` a few times a second, so that work costs
nothing to watch, and a library user who does not look sees nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
_under_way: list[Task] = []


@dataclass(eq=False)
class Task:
    """A piece of work.

    Attributes:
        title: what is being done, such as "Writing the anchor's texts".
        total: number of parts in `unit`, if it is known.
        done: number of finished parts.
        note: what else can be said, such as the loss.
    """

    title: str
    total: int | None = None
    unit: str = ""
    done: int = 0
    note: str = ""

    def advance(self, parts: int = 1) -> None:
        self.done += parts

    def __str__(self) -> str:
        words = [self.title]
        if self.total:
            words.append(f"{self.done:,} of {self.total:,} {self.unit}".rstrip())
        return ": ".join([*words, self.note] if self.note else words)


@contextmanager
def progress(title: str, total: int | None = None, unit: str = "") -> Iterator[Task]:
    """Announce a piece of work for the time of the block; call `advance` of the task inside."""
    task = Task(title, total, unit)
    _under_way.append(task)
    try:
        yield task
    finally:
        _under_way.remove(task)


def tracked(parts: Iterable[T], title: str, unit: str = "", total: int | None = None) -> Iterator[T]:
    """Yield the parts of a piece of work; each counts as done when the next one is asked for."""
    with progress(title, len(parts) if total is None and isinstance(parts, Sized) else total, unit) as task:
        for part in parts:
            yield part
            task.advance()


def under_way() -> list[Task]:
    """Return the pieces of work that are being done in this process, the outer ones first."""
    return list(_under_way)
