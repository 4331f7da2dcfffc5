"""Figures with intervals that cover both the sampling of items and the spread over seeds.

A *draw* is one joint resample. Its items are drawn with replacement, once for all runs and the base
(`scoring.resampled_together`), so that what the runs have in common cancels in their differences. Its seeds enter as
weights: with k seeds, figures x_1 ... x_k on the drawn items, their mean xbar and standard deviation s,

    draw = sum_i w_i x_i,   w_i = 1/k + (g_i - mean(g)) / sqrt(k (k - 1)) / sqrt(chi2_{k-1} / (k - 1)),   g_i ~ N(0, 1).

Given the items, (draw - xbar) / (s / sqrt(k)) then has Student's t distribution with k - 1 degrees of freedom, so that
without any noise of items the percentile interval is exactly the t interval of the mean over seeds. Plain resampling
of seeds with replacement cannot leave the range of the seeds, which with three of them covers the mean in 3 of 4 cases
only. Runs of the same seeds share the weights: a seed fixes the order of the rows, and a difference of two methods over
the same seeds gets the interval of the paired t test. With one seed there is no weight to draw, and the interval is of
items only. (Student, Biometrika 1908; the weights are those of a multiplier bootstrap: van der Vaart and Wellner, Weak
Convergence and Empirical Processes, 1996, section 3.6.)
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...artefacts.comparison import IntervalEntry
from ...errors import CofituneError
from ...scoring import DRIFTS, GROUPS, Score, SuiteScores, resampled_score, resampled_together

RESAMPLES = 2000
CONFIDENCE = 0.95
FIGURES = ("spec", "vers", "knowledge", "reasoning", "instruction", "uni", "instruction_likelihood", "drift",
           "task_drift")
"""Figures reported of a point; larger is better.

They are the figures of a suite, and measures of what changes before Vers does. instruction_likelihood:
exp(-NLL per token), mean over the likelihood-scored tasks of the instruction group. drift and task_drift: minus the KL
to the base in nats per token, on responses to instructions and on those of the task, where they were measured.
"""


@dataclass(frozen=True)
class Estimate:
    """A figure and its draws, float64 [RESAMPLES]."""

    value: float
    draws: np.ndarray

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.draws - other.draws)

    def __mul__(self, factor: float) -> Estimate:
        return Estimate(factor * self.value, factor * self.draws)

    def share_of(self, other: Estimate) -> Estimate:
        """Divide by `other`, which must be above 0; where a draw of it is not, the quotient's draw is infinite."""
        drawn = np.divide(self.draws, other.draws, out=np.full(len(self.draws), np.inf), where=other.draws > 0)
        return Estimate(self.value / other.value, drawn)

    def interval(self) -> tuple[float, float]:
        """Return the percentile interval; its ends are draws, not interpolated, so that infinite draws do no harm."""
        ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
        low, high = np.quantile(self.draws, ends, method="inverted_cdf")
        return float(low), float(high)

    def to_dict(self) -> IntervalEntry:
        low, high = self.interval()
        return {"value": float(self.value), "low": low, "high": high}


def mean_over_seeds(runs: Mapping[int, Estimate]) -> Estimate:
    """Average over {seed: estimate}, with the draws of the formula above."""
    seeds = sorted(runs)
    drawn = np.stack([runs[seed].draws for seed in seeds], axis=1)
    value = math.fsum(runs[seed].value for seed in seeds) / len(seeds)
    return Estimate(value, np.sum(seed_weights(seeds, len(drawn)) * drawn, axis=1))


def seed_weights(seeds: Sequence[int], resamples: int = RESAMPLES) -> np.ndarray:
    """Return weights float64 [resamples, seeds] whose rows sum to 1; they depend on the seeds alone."""
    k = len(seeds)
    if k == 1:
        return np.ones((resamples, 1))
    generator = np.random.default_rng(zlib.crc32(repr(tuple(seeds)).encode()))
    normal = generator.standard_normal((resamples, k))
    chi = np.sqrt(generator.chisquare(k - 1, (resamples, 1)) / (k - 1))
    return 1 / k + (normal - normal.mean(axis=1, keepdims=True)) / math.sqrt(k * (k - 1)) / chi


def suite_estimates(suites: Mapping[str, SuiteScores]) -> dict[str, dict[str, Estimate]]:
    """Return {run: {figure: Estimate}} of runs on the same items; a figure that a run lacks is left out.

    Raises:
        CofituneError: a run lacks its items, or the runs were scored on different items (other data, or another base).
    """
    names, scores = list(suites), list(suites.values())
    for name in names:
        _same_items(names[0], suites[names[0]], name, suites[name])
    drawn = resampled_together(scores, RESAMPLES)
    found = {
        name: {figure: Estimate(getattr(suite, figure), draws[:, place]) for figure, draws in drawn.items()}
        for place, (name, suite) in enumerate(suites.items())
    }
    likelihood = [_likelihood_only(suite) for suite in scores]
    if all(likelihood):
        draws = resampled_together(likelihood, RESAMPLES)["instruction"]
        for place, (name, suite) in enumerate(zip(names, likelihood, strict=True)):
            tasks = suite.tasks["instruction"].values()
            value = math.fsum(task.value for task in tasks) / len(tasks)
            found[name]["instruction_likelihood"] = Estimate(value, draws[:, place])
    for name, suite in suites.items():
        for drift, score in _drifts(suite).items():
            found[name][drift] = Estimate(0.0 - score.value, 0.0 - resampled_score(drift, score, RESAMPLES))
    return found


def suite_values(suite: SuiteScores) -> dict[str, float]:
    """Return the figures of `suite_estimates` without draws."""
    values = {figure: getattr(suite, figure) for figure in FIGURES[:6]}
    if likelihood := _likelihood_only(suite):
        tasks = likelihood.tasks["instruction"].values()
        values["instruction_likelihood"] = math.fsum(task.value for task in tasks) / len(tasks)
    return values | {name: 0.0 - score.value for name, score in _drifts(suite).items()}


def _drifts(suite: SuiteScores) -> dict[str, Score]:
    return {name: score for name in DRIFTS if (score := getattr(suite, name)) is not None}


def _likelihood_only(suite: SuiteScores) -> SuiteScores | None:
    tasks = {name: score for name, score in suite.tasks.get("instruction", {}).items() if score.metric == "likelihood"}
    return replace(suite, tasks={**suite.tasks, "instruction": tasks}) if tasks else None


def _same_items(one: str, first: SuiteScores, other: str, second: SuiteScores) -> None:
    scores = [score for group in GROUPS for score in second.tasks.get(group, {}).values()]
    scores += _drifts(second).values()
    if not scores or not all(score.items for score in scores):
        raise CofituneError(f"The scores {other} have no per-item values, which the intervals need; score it anew.")
    drifts = [{name: [item.tokens for item in score.items] for name, score in _drifts(suite).items()}
              for suite in (first, second)]
    differ = any(drifts[0][name] != drifts[1][name] for name in drifts[0].keys() & drifts[1].keys())
    if _items(first) != _items(second) or differ:
        raise CofituneError(
            f"The scores {one} and {other} are of other items or of another tokenizer, and cannot stand in one table; "
            "compare runs of one base and the same data."
        )


def _items(suite: SuiteScores) -> dict[tuple[str, str], tuple[Any, ...]]:
    """Return the properties of scores that training cannot change: tasks, metrics, item counts, tokens of fixed
    answers.
    """
    return {
        (group, name): (score.metric, len(score.items), score.metric in ("likelihood", "nll") and
                        [item.tokens for item in score.items])
        for group, scores in suite.tasks.items() for name, score in scores.items()
    }  # fmt: skip
