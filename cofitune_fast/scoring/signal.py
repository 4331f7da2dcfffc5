"""Early signal of a training: it moves from the first steps on, when Uni still is noise of the sampled items.

signal = -(NLL of the speciality's answers) - KL(base || model) on general responses, both in nats per token. This is
the objective of a training with the anchor at weight 1, on rows that are not trained on. Larger is better. The formula
is our own; docs/search.md reports how well it foretells the final Uni.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from ..errors import CofituneError
from ..json_text import flaw
from ..memory.cached_prefix import CachedPrefix
from .bootstrap import resampled_score
from .drift import BaseStates
from .results import Score, score_of
from .score import score_task
from .tasks import Task

ROWS, DRIFT_ROWS = 64, 32
"""Most rows of a task of the speciality, and most responses for the drift. Paired differences need few."""


@dataclass(frozen=True)
class Signal:
    """Likelihood of the speciality and drift of one model, with their items.

    Attributes:
        nll: mean NLL per token of each task of the speciality, by the task's name.
        drift: KL(base || model) per token, or None if the suite has no responses to measure it on.
    """

    nll: Mapping[str, Score]
    drift: Score | None = None

    @property
    def nll_mean(self) -> float:
        return sum(score.value for score in self.nll.values()) / len(self.nll)

    @property
    def value(self) -> float:
        """The signal in nats per token."""
        return -self.nll_mean - (self.drift.value if self.drift else 0.0)

    @property
    def se(self) -> float:
        """Standard error of `value`, with tasks and drift as independent samples."""
        errors = [score.se / len(self.nll) for score in self.nll.values()]
        return math.hypot(*errors, self.drift.se if self.drift else 0.0)

    def resampled(self, resamples: int, seed: int = 0) -> np.ndarray:
        """Resample `value`, float64 [resamples]; models on the same items share the draws, see `bootstrap`."""
        drawn = -np.mean([resampled_score(name, score, resamples, seed) for name, score in self.nll.items()], axis=0)
        return drawn if self.drift is None else drawn - resampled_score("drift", self.drift, resamples, seed)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON, with items."""
        return {"nll": {name: score.to_dict(items=True) for name, score in self.nll.items()},
                "drift": self.drift.to_dict(items=True) if self.drift is not None else None}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Signal:
        if problem := flaw(entry, {"nll": {str: dict}, "drift": (dict, type(None))}):
            raise CofituneError(f"This signal is damaged: {problem}; score the model anew.")
        drift = Score.from_dict(entry["drift"]) if entry["drift"] else None
        return cls({name: Score.from_dict(score) for name, score in entry["nll"].items()}, drift)


def score_signal(
    model: nn.Module, tokenizer: Any, tasks: Sequence[Task], base: BaseStates | None, *,
    prefix: CachedPrefix | None = None,
) -> Signal:
    """Measure the signal of a model.

    Args:
        tasks: the speciality, as from `signal_tasks`.
        base: the base's side of the drift, or None.
        prefix: see `answer_scores`.
    """
    nll = {task.name: score_task(model, tokenizer, task, prefix=prefix) for task in tasks}
    return Signal({name: score_of(score.items, "nll", ("nll",)) for name, score in nll.items()},
                  base.drift(model) if base is not None else None)


def signal_tasks(speciality: Sequence[Task]) -> list[Task]:
    """Return the first ROWS items of each task, to be scored by likelihood even where the task's metric generates."""
    return [replace(task, items=task.items[:ROWS], metric="likelihood" if task.is_generated else task.metric)
            for task in speciality]
