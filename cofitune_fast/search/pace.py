"""Forecast of time: counted operations, and the measured seconds that one of each kind takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of training and of scoring, counted as in `Work`, and the number of jobs they make."""

    training: float = 0.0
    scoring: float = 0.0
    jobs: float = 0.0

    @property
    def total(self) -> float:
        return self.training + self.scoring

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.training + other.training, self.scoring + other.scoring, self.jobs + other.jobs)

    def less(self, other: Operations) -> Operations:
        """Return what is left of these after `other`, at least nothing of each kind."""
        return Operations(max(0.0, self.training - other.training), max(0.0, self.scoring - other.scoring),
                          max(0.0, self.jobs - other.jobs))

    def times(self, share: float) -> Operations:
        return Operations(share * self.training, share * self.scoring, share * self.jobs)


@dataclass(frozen=True)
class Pace:
    """Measured speed.

    Training and scoring have each their own, as their batches differ. A short job takes longer than its operations
    tell, so what it takes beside its steps is a time per job.

    Attributes:
        training, scoring: seconds per operation; None where none was measured.
        beside: seconds that a job takes beside its steps and its scoring.
    """

    training: float | None = None
    scoring: float | None = None
    beside: float = 0.0

    @classmethod
    def of(cls, costs: Iterable[tuple[Operations, Mapping[str, Any]]]) -> Pace:
        """Measure the pace of jobs.

        Args:
            costs: of each job its operations, and its cost: scoring_seconds, training_seconds and, where it is known,
                steady_seconds, the part of these that the steps took, see `training.TrainResult`.
        """
        steps = scored = beside = trained_operations = scored_operations = 0.0
        jobs = 0
        for operations, cost in costs:
            scored += cost["scoring_seconds"]
            scored_operations += operations.scoring
            if operations.training:
                steady = cost.get("steady_seconds") or cost["training_seconds"]
                steps, beside, jobs = steps + steady, beside + cost["training_seconds"] - steady, jobs + 1
                trained_operations += operations.training
        return cls(steps / trained_operations if trained_operations else None,
                   scored / scored_operations if scored_operations else None, beside / jobs if jobs else 0.0)

    def seconds(self, work: Operations) -> float | None:
        """Predict the seconds of some work; None before a job of its kind was measured."""
        if (work.training and self.training is None) or (work.scoring and self.scoring is None):
            return None
        return work.training * (self.training or 0.0) + work.scoring * (self.scoring or 0.0) + work.jobs * self.beside
