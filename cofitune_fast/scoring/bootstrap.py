"""Bootstrap resamples of a suite's figures (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 6).

The items of each task are drawn anew with replacement, tasks independently, as the standard errors of `results` assume.
The draws depend on the seed and the task alone: figures of several models on the same items are resampled together, so
that the draws of their difference are those of the paired difference.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from .results import ItemScore, Score, SuiteScores
from .suite import VERSATILITY

_AT_ONCE = 2**22  # counts of items in memory


def resampled_figures(scores: SuiteScores, resamples: int = 2000, seed: int = 0) -> dict[str, np.ndarray]:
    """spec, knowledge, reasoning, instruction, vers and uni of `resamples` draws, float64 [resamples] each.

    scores: with the items of each task.
    """
    groups = {
        "spec" if group == "speciality" else group:
            np.mean([_resampled(name, score, resamples, seed) for name, score in tasks.items()], axis=0)
        for group, tasks in scores.tasks.items()
    }
    groups["vers"] = np.mean([groups[group] for group in VERSATILITY], axis=0)
    return {**groups, "uni": groups["spec"] + groups["vers"]}


def _resampled(name: str, score: Score, resamples: int, seed: int) -> np.ndarray:
    items: Sequence[ItemScore] = score.items
    size = len(items)
    generator = np.random.default_rng((seed, zlib.crc32(name.encode())))
    nll, tokens, correct = np.array(items, dtype=np.float64).T
    drawn, step = [], max(1, _AT_ONCE // size)
    for start in range(0, resamples, step):
        counts = generator.multinomial(size, np.full(size, 1 / size), min(step, resamples - start)).astype(np.float64)
        mean_nll = (counts @ nll) / (counts @ tokens)
        drawn.append({"nll": mean_nll, "likelihood": np.exp(-mean_nll)}.get(score.metric, counts @ correct / size))
    return np.concatenate(drawn)
