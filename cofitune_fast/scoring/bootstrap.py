"""Bootstrap resamples of a suite's figures (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 6).

The items of each task are drawn anew with replacement, tasks independently, as the standard errors of `results` assume.
The draws depend on the seed and the task alone: figures of several models on the same items are resampled together, so
that the draws of their difference are those of the paired difference.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import metrics
from .results import Score, SuiteScores
from .suite import VERSATILITY

_AT_ONCE = 2**22  # counts of items in memory


def resampled_figures(scores: SuiteScores, resamples: int = 2000, seed: int = 0) -> dict[str, np.ndarray]:
    """spec, knowledge, reasoning, instruction, vers and uni of `resamples` draws, float64 [resamples] each.

    scores: with the items of each task.
    """
    return {figure: drawn[:, 0] for figure, drawn in resampled_together([scores], resamples, seed).items()}


def resampled_together(
    suites: Sequence[SuiteScores], resamples: int = 2000, seed: int = 0
) -> dict[str, np.ndarray]:
    """The same for several models' scores on the same items, float64 [resamples, models]: the items are drawn once."""
    groups = {
        "spec" if group == "speciality" else group:
            np.mean([_resampled(name, [suite.tasks[group][name] for suite in suites], resamples, seed)
                     for name in tasks], axis=0)
        for group, tasks in suites[0].tasks.items()
    }
    groups["vers"] = np.mean([groups[group] for group in VERSATILITY], axis=0)
    return {**groups, "uni": groups["spec"] + groups["vers"]}


def resampled_score(name: str, score: Score, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """The value of `resamples` draws, float64 [resamples], of the items of a score; `name` is its task's."""
    return _resampled(name, [score], resamples, seed)[:, 0]


def _resampled(name: str, scores: Sequence[Score], resamples: int, seed: int) -> np.ndarray:
    """Of several models' scores on the same items, float64 [resamples, models]."""
    size = len(scores[0].items)
    generator = np.random.default_rng((seed, zlib.crc32(name.encode())))
    of_counts = [_of_counts(score.metric, score.items) for score in scores]
    drawn, step = [], max(1, _AT_ONCE // size)
    for start in range(0, resamples, step):
        counts = generator.multinomial(size, np.full(size, 1 / size), min(step, resamples - start)).astype(np.float64)
        drawn.append(np.stack([value(counts) for value in of_counts], axis=-1))
    return np.concatenate(drawn)


def _of_counts(metric: str, items: Sequence[Any]) -> Callable[[np.ndarray], np.ndarray]:
    """The metric [draws] of draws in which the items come so often: counts, float64 [draws, items]."""
    if metric in metrics.METRICS:
        statistics = metrics.sum_statistics(metric, items)
        return lambda counts: metrics.METRICS[metric].value(counts @ statistics)
    nll, tokens, correct = np.array(items, dtype=np.float64).T
    if metric == "nll":
        return lambda counts: (counts @ nll) / (counts @ tokens)
    if metric == "likelihood":
        return lambda counts: np.exp(-(counts @ nll) / (counts @ tokens))
    return lambda counts: counts @ correct / len(items)
