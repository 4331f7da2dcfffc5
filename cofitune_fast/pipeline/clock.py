"""Estimate of the time left in a run, from the work that is done and the work that waits."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Predicts the time left from operation counts and the measured seconds per operation.

    Attributes:
        waiting: {job: its floating-point operations}.
    """

    waiting: dict[str, float] = field(default_factory=dict)
    _running: tuple[str, float] | None = None
    _weight: float = 0.0
    _seconds: float = 0.0

    def start(self, job: str) -> None:
        self._running = (job, time.perf_counter())

    def finish(self, job: str) -> None:
        weight = self.waiting.pop(job, 0.0)
        if self._running and self._running[0] == job and weight:
            self._seconds += time.perf_counter() - self._running[1]
            self._weight += weight
        self._running = None

    def learn(self, weight: float, seconds: float) -> None:
        """Replace the measured speed: `weight` operations took `seconds`."""
        self._weight, self._seconds = weight, seconds

    @property
    def remaining(self) -> float | None:
        """Predicted seconds of the waiting jobs; None before the first job is finished."""
        return sum(self.waiting.values()) * self._seconds / self._weight if self._weight else None
