"""Bootstrap resamples of a suite's figures (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 6).

The items of each task are drawn with replacement, independently for each task, as the standard errors of `results`
assume. The draws depend only on the seed and the task. So figures of several models on the same items use the same
draws, and the difference of their draws is the paired difference.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import CofituneError
from . import metrics
from .results import Score, SuiteScores
from .suite import GROUPS, VERSATILITY

_AT_ONCE = 2**22  # item counts in memory at a time


def resampled_figures(scores: SuiteScores, resamples: int = 2000, seed: int = 0) -> dict[str, np.ndarray]:
    """Resample spec, knowledge, reasoning, instruction, vers and uni; float64 [resamples] each.

    scores: must have the items of each task.
    """
    return {figure: drawn[:, 0] for figure, drawn in resampled_together([scores], resamples, seed).items()}


def resampled_together(
    suites: Sequence[SuiteScores], resamples: int = 2000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Resample the figures of several models with the same draws of items, float64 [resamples, models] each."""
    if lacking := [group for group in GROUPS if not suites[0].tasks.get(group)]:
        raise CofituneError(f"These scores lack the tasks of {', '.join(lacking)}; score the model anew.")
    groups = {
        "spec" if group == "speciality" else group:
            np.mean([_resampled(name, [suite.tasks[group][name] for suite in suites], resamples, seed)
                     for name in tasks], axis=0)
        for group, tasks in suites[0].tasks.items()
    }
    groups["vers"] = np.mean([groups[group] for group in VERSATILITY], axis=0)
    return {**groups, "uni": groups["spec"] + groups["vers"]}


def resampled_score(name: str, score: Score, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """Resample the value of one score, float64 [resamples]. name: that of its task."""
    return _resampled(name, [score], resamples, seed)[:, 0]


def _resampled(name: str, scores: Sequence[Score], resamples: int, seed: int) -> np.ndarray:
    """Resample the values of several models' scores with the same draws, float64 [resamples, models]."""
    size = len(scores[0].items)
    if not size or any(len(score.items) != size for score in scores):
        raise CofituneError(f"The scores of {name} lack items that their resampling needs; score the model anew.")
    generator = np.random.default_rng((seed, zlib.crc32(name.encode())))
    of_counts = [_of_counts(score.metric, score.items) for score in scores]
    drawn, step = [], max(1, _AT_ONCE // size)
    for start in range(0, resamples, step):
        counts = generator.multinomial(size, np.full(size, 1 / size), min(step, resamples - start)).astype(np.float64)
        drawn.append(np.stack([value(counts) for value in of_counts], axis=-1))
    return np.concatenate(drawn)


def _of_counts(metric: str, items: Sequence[Any]) -> Callable[[np.ndarray], np.ndarray]:
    """Make a function from item counts, float64 [draws, items], to the metric of each draw, [draws]."""
    if metric in metrics.METRICS:
        statistics = metrics.sum_statistics(metric, items)
        return lambda counts: metrics.METRICS[metric].value(counts @ statistics)
    nll, tokens, correct = np.array(items, dtype=np.float64).T
    if metric == "nll":
        return lambda counts: (counts @ nll) / (counts @ tokens)
    if metric == "likelihood":
        return lambda counts: np.exp(-(counts @ nll) / (counts @ tokens))
    return lambda counts: counts @ correct / len(items)
