"""Metrics that are functions of sums over the items. One table serves value, standard error and bootstrap.

Each item contributes a vector of statistics, and the metric is a function of the sum of these vectors. Leaving out an
item, or resampling items, only changes the sum. Standard errors are from the jackknife: with theta_i the metric without
item i, the influence of item i is d_i = (n - 1) (mean(theta) - theta_i), and se^2 = sum_i d_i^2 / (n (n - 1))
(Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 11). For a mean, d_i = x_i - mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class GeneratedItem(NamedTuple):
    """A generated response and its statistics against the references; see `text_metrics`.

    bleu: length of hypothesis and reference, then 4 matches and 4 totals of word n-grams.
    chrf: for each of the 6 orders of character n-grams their number in the hypothesis, in the reference and in both.
    rouge_l: F1 of the longest common subsequence; None, and not counted, if no reference has a word.
    exact_answer, last_number: True if the answer is right, read in two ways; None if the task has no such answers.
    """

    text: str
    bleu: tuple[int, ...]
    chrf: tuple[int, ...]
    rouge_l: float | None
    exact_answer: bool | None = None
    last_number: bool | None = None


class FollowedItem(NamedTuple):
    """A generated response, and for each instruction of its prompt True if the response follows it.

    followed: the text as it is (strict). loose: the text, or what is left without asterisks, its first or its last
    line; None in files that were written without.
    """

    text: str
    followed: tuple[bool, ...]
    loose: tuple[bool, ...] | None = None


class DriftItem(NamedTuple):
    """Summed KL over the response tokens of a row, in nats, and the number of these tokens."""

    kl: float
    tokens: int


@dataclass(frozen=True)
class Metric:
    """One metric. item: the type of its items. statistics(item) -> k numbers; value(sums [..., k]) -> float64 [...]."""

    item: type
    statistics: Callable[[Any], Sequence[float]]
    value: Callable[[np.ndarray], np.ndarray]


def estimate(metric: str, items: Sequence[Any]) -> tuple[float, list[float]]:
    """Compute the metric of the items, and the influence of each item on it."""
    rule, statistics = METRICS[metric], sum_statistics(metric, items)
    total = statistics.sum(0)
    without = rule.value(total - statistics)
    return float(rule.value(total)), ((len(items) - 1) * (without.mean() - without)).tolist()


def sum_statistics(metric: str, items: Sequence[Any]) -> np.ndarray:
    """Statistics of all items, float64 [items, k]."""
    return np.array([METRICS[metric].statistics(item) for item in items], dtype=np.float64)


def read_item(metric: str, values: Sequence[Any]) -> Any:
    """Make an item of the metric from its list of plain values, as in JSON."""
    return METRICS[metric].item(*(tuple(value) if isinstance(value, list) else value for value in values))


def ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def bleu(sums: np.ndarray) -> np.ndarray:
    """Corpus BLEU in [0, 1] (Papineni et al., ACL 2002), with sacrebleu's default smoothing "exp".

    The smoothing counts 1 / 2^k matches for the k-th order without a match. sums: [..., 10], see GeneratedItem.
    """
    hypothesis, reference, matches, totals = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:]
    none = matches == 0
    precisions = np.where(none, 0.5 ** np.cumsum(none, -1), matches) / np.maximum(totals, 1)
    brevity = np.exp(np.minimum(0, 1 - reference / np.maximum(hypothesis, 1)))
    defined = matches.any(-1) & (totals > 0).all(-1)
    return np.where(defined, brevity * np.exp(np.log(precisions).mean(-1)), 0.0)


def chrf(sums: np.ndarray) -> np.ndarray:
    """Corpus chrF2 in [0, 1] (Popovic, WMT 2015), as in sacrebleu.

    Precision and recall are means over the orders that occur on both sides; beta = 2. sums: [..., 18], see
    GeneratedItem.
    """
    counts = sums.reshape(*sums.shape[:-1], 6, 3)
    hypothesis, reference, matches = counts[..., 0], counts[..., 1], counts[..., 2]
    counted = (hypothesis > 0) & (reference > 0)
    orders = np.maximum(counted.sum(-1), 1)
    precision = (counted * matches / np.maximum(hypothesis, 1)).sum(-1) / orders
    recall = (counted * matches / np.maximum(reference, 1)).sum(-1) / orders
    weighed = 4 * precision + recall
    return np.where(weighed > 0, 5 * precision * recall / np.where(weighed > 0, weighed, 1), 0.0)


METRICS = {
    "bleu": Metric(GeneratedItem, lambda item: item.bleu, bleu),
    "chrf": Metric(GeneratedItem, lambda item: item.chrf, chrf),
    "rouge_l": Metric(GeneratedItem, lambda item: (item.rouge_l or 0, item.rouge_l is not None), ratio),
    "exact_answer": Metric(GeneratedItem, lambda item: (item.exact_answer, 1), ratio),
    "last_number": Metric(GeneratedItem, lambda item: (item.last_number, 1), ratio),
    "prompt_level_strict_acc": Metric(FollowedItem, lambda item: (all(item.followed), 1), ratio),
    "inst_level_strict_acc": Metric(FollowedItem, lambda item: (sum(item.followed), len(item.followed)), ratio),
    "prompt_level_loose_acc": Metric(FollowedItem, lambda item: (all(item.loose), 1), ratio),
    "inst_level_loose_acc": Metric(FollowedItem, lambda item: (sum(item.loose), len(item.loose)), ratio),
    "kl": Metric(DriftItem, lambda item: (item.kl, item.tokens), ratio),
}
