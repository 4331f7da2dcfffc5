"""Estimate of the time left in a run, from the work that is done and the work that waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..search import Operations, Pace


@dataclass
class Clock:
    """Predicts the time left from operation counts and the measured seconds per operation.

    The pace is that of the finished jobs of this run; until one of a kind is finished, that of the search before it.

    Attributes:
        waiting: {job: its operations}.
        search: pace of the search, if there was one.
    """

    waiting: dict[str, Operations] = field(default_factory=dict)
    search: Pace = Pace()  # noqa: RUF009  (frozen)
    _done: list[tuple[Operations, Mapping[str, Any]]] = field(default_factory=list)

    def finish(self, job: str, cost: Mapping[str, Any] | None = None) -> None:
        """Take a job off the waiting ones; its cost has training_seconds and scoring_seconds, None if it failed."""
        operations = self.waiting.pop(job, None)
        if operations is not None and cost is not None:
            self._done.append((operations, cost))

    @property
    def left(self) -> Operations:
        return sum(self.waiting.values(), Operations())

    @property
    def remaining(self) -> float | None:
        """Predicted seconds of the waiting jobs; None before a job of each kind was measured."""
        done = Pace.of(self._done)
        pace = Pace(done.training or self.search.training, done.scoring or self.search.scoring,
                    done.beside if done.training else self.search.beside)
        return pace.seconds(self.left)
