"""Scores with standard errors, from items to Spec, Vers and Uni.

Every value lies in [0, 1], except for Uni = Spec + Vers, which lies in [0, 2]. Larger is better.

Standard errors treat the items of a task as a sample and the tasks as independent. Each metric is a smooth function of
means over the n items, and its error follows from the influence d_i of each item on it (the delta method):
se^2 = sum_i d_i^2 / (n (n - 1)). For a fraction p of correct items d_i = correct_i - p, so that
se^2 = p (1 - p) / (n - 1); for the mean NLL per token, R = sum_i nll_i / sum_i t_i, a ratio,
d_i = (nll_i - R t_i) / mean(t) (Cochran, Sampling Techniques, 1977, section 6.3); for the likelihood exp(-R) it is
d_i = -exp(-R) (nll_i - R t_i) / mean(t). The metrics of generated text and of drift have theirs in `metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, partial
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from ..errors import CofituneError
from ..json_text import flaw
from . import metrics
from .suite import GROUPS, VERSATILITY

SUMMARY = ("spec", "vers", "knowledge", "reasoning", "instruction", "uni")
"""Figures of a suite. Each has a standard error NAME_se in SuiteScores and in its dictionary."""

DRIFTS = {"drift": "instruction", "task_drift": "speciality"}
"""KLs to the base in SuiteScores, and the group on whose responses each is measured."""

_SCORE = {  # form of a score in a file, see `json_text.flaw`
    "value": float, "se": float, "n": int, "metric": str, "metrics": {str: float}, "items?": [list],
    "notes?": {str: str},
}
_FORMER = {"prompt_strict": "prompt_level_strict_acc", "instruction_strict": "inst_level_strict_acc"}
"""Former names of metrics in files, and their names now."""


class ItemScore(NamedTuple):
    """Score of one item.

    nll: summed negative log-likelihood of its (gold) answer, in nats. tokens: number of tokens of that answer.
    correct: the gold choice was preferred (choice), or every token of the answer was the most probable one.
    """

    nll: float
    tokens: int
    correct: bool


@dataclass(frozen=True)
class Score:
    """Score of a task: `value` is the metric named `metric`, and `se` its standard error, from `n` items.

    metrics: all metrics of the task's kind by name, each with its NAME_se.
    items: ItemScore, or the type that module `metrics` has for the metric. Empty if the file was written without items.
    notes: {metric: a sentence}, for metrics that have no meaning for all or some of the items.

    Values lie in [0, 1], except for the drift (metric "kl"): it is in nats, and smaller is better.
    """

    value: float
    se: float
    n: int
    metric: str
    metrics: Mapping[str, float]
    items: Sequence[Any] = field(default=(), repr=False)
    notes: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self, items: bool = False) -> dict[str, Any]:
        entry = {"value": self.value, "se": self.se, "n": self.n, "metric": self.metric, "metrics": dict(self.metrics)}
        entry |= {"notes": dict(self.notes)} if self.notes else {}
        return {**entry, "items": [list(item) for item in self.items]} if items else entry

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Score:
        if problem := flaw(entry, _SCORE):
            raise CofituneError(f"A score is damaged: {problem}; score the model anew.")
        metric, items = _FORMER.get(entry["metric"], entry["metric"]), entry.get("items", ())
        read = partial(metrics.read_item, metric) if metric in metrics.METRICS else lambda values: ItemScore(*values)
        try:
            found = [read(item) for item in items]
        except TypeError as error:  # the wrong number of values
            raise CofituneError(f"An item of a score by {metric} is damaged ({error}); score the model anew.") from None
        if any(not _is_of(value, kind) for item in found for value, kind in
               zip(item, _types(type(item)).values(), strict=True)):
            raise CofituneError(f"An item of a score by {metric} is damaged; score the model anew.")
        known = {one.name: entry[one.name] for one in fields(cls) if one.name in entry}
        return cls(**{**known, "metric": metric, "items": found})


_types = cache(get_type_hints)


def _is_of(value: Any, kind: Any) -> bool:
    """True if a value is of a type of an item's field: a plain one, tuple[TYPE, ...], or several joined by |."""
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_of(one, get_args(kind)[0]) for one in value)
    if get_args(kind):
        return any(_is_of(value, one) for one in get_args(kind))
    return flaw(value, kind) is None


def make_score(items: Sequence[ItemScore], metric: str, success: str) -> Score:
    """Score at least 2 items by `metric`. success: name of the fraction of correct items, "accuracy" or "exact"."""
    return score_of(items, metric, (success, "likelihood", "nll"))


def score_of(items: Sequence[Any], metric: str, names: Sequence[str]) -> Score:
    """Score at least 2 items by `metric`, and compute all the metrics in `names`."""
    figures: dict[str, float] = {}
    for name in names:
        figures[name], influences = _estimate(name, items)
        figures[f"{name}_se"] = _standard_error(influences)
    return Score(figures[metric], figures[f"{metric}_se"], len(items), metric, figures, items)


def paired_difference(first: Score, second: Score) -> tuple[float, float]:
    """Difference first - second of two models' scores on the same items, and its standard error.

    The difficulty of the items cancels, so the error is often far below that of two independent scores. Raises
    CofituneError unless both scores have per-item values, of the same items and the same metric.
    """
    if not first.items or not second.items:
        raise CofituneError("A paired comparison needs the per-item values of both scores; save them with items=True.")
    same = first.metric == second.metric and first.n == second.n
    if not same or (
        first.metric == "likelihood"
        and any(a.tokens != b.tokens for a, b in zip(first.items, second.items, strict=True))
    ):
        raise CofituneError("A paired comparison needs two scores of the same items by the same metric.")
    influences = [a - b for a, b in zip(*(_estimate(first.metric, score.items)[1] for score in (first, second)),
                                        strict=True)]
    return first.value - second.value, _standard_error(influences)


def _estimate(metric: str, items: Sequence[Any]) -> tuple[float, list[float]]:
    """Compute the metric of the items, and the influence of each item on it."""
    if metric in metrics.METRICS:
        return metrics.estimate(metric, items)
    return {"likelihood": _likelihood, "nll": _nll}.get(metric, _fraction_correct)(items)


def _fraction_correct(items: Sequence[ItemScore]) -> tuple[float, list[float]]:
    fraction = sum(item.correct for item in items) / len(items)
    return fraction, [item.correct - fraction for item in items]


def _nll(items: Sequence[ItemScore]) -> tuple[float, list[float]]:
    tokens = sum(item.tokens for item in items)
    ratio = math.fsum(item.nll for item in items) / tokens
    return ratio, [(item.nll - ratio * item.tokens) * len(items) / tokens for item in items]


def _likelihood(items: Sequence[ItemScore]) -> tuple[float, list[float]]:
    nll, influences = _nll(items)
    likelihood = math.exp(-nll)
    return likelihood, [-likelihood * influence for influence in influences]


def _standard_error(influences: Sequence[float]) -> float:
    n = len(influences)
    return math.sqrt(math.fsum(influence**2 for influence in influences) / (n * (n - 1)))


@dataclass(frozen=True)
class SuiteScores:
    """Spec, Vers and Uni with their standard errors, and the scores of the tasks: {group: {task: Score}}.

    Spec and each of the three groups is the mean of its k tasks, with se^2 = sum of se^2 / k^2. Vers is the mean of
    knowledge, reasoning and instruction, with its error likewise. Uni = Spec + Vers, with
    se^2 = se(Spec)^2 + se(Vers)^2.
    drift: KL to the base on the responses of the instruction tasks, if it was measured; task_drift: the same on those
    of the speciality. They are part of none of the figures.
    """

    spec: float
    vers: float
    knowledge: float
    reasoning: float
    instruction: float
    uni: float
    spec_se: float
    vers_se: float
    knowledge_se: float
    reasoning_se: float
    instruction_se: float
    uni_se: float
    tasks: Mapping[str, Mapping[str, Score]] = field(default_factory=dict, repr=False)
    drift: Score | None = field(default=None, repr=False)
    task_drift: Score | None = field(default=None, repr=False)

    @classmethod
    def of(cls, tasks: Mapping[str, Mapping[str, Score]]) -> SuiteScores:
        """Summarise {group: {task: Score}} with at least one task in each of the four groups."""
        figures = {
            "spec" if group == "speciality" else group: _mean(
                [(score.value, score.se) for score in tasks[group].values()]
            )
            for group in GROUPS
        }
        figures["vers"] = _mean([figures[group] for group in VERSATILITY])
        (spec, spec_se), (vers, vers_se) = figures["spec"], figures["vers"]
        figures["uni"] = (spec + vers, math.hypot(spec_se, vers_se))
        values = {name: value for name, (value, _) in figures.items()}
        errors = {f"{name}_se": se for name, (_, se) in figures.items()}
        return cls(**values, **errors, tasks=tasks)

    def to_dict(self, items: bool = False) -> dict[str, Any]:
        """Plain values for JSON: the figures, each with NAME_se, "tasks" and, if measured, "drift" and "task_drift".

        items: True adds the per-item values.
        """
        figures = {key: getattr(self, key) for name in SUMMARY for key in (name, f"{name}_se")}
        tasks = {
            group: {name: score.to_dict(items) for name, score in scores.items()}
            for group, scores in self.tasks.items()
        }
        drifts = {name: score.to_dict(items) for name in DRIFTS if (score := getattr(self, name)) is not None}
        return {**figures, "tasks": tasks, **drifts}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> SuiteScores:
        """Read the scores from a dictionary made by `to_dict`. Other keys in it are ignored."""
        keys = [key for name in SUMMARY for key in (name, f"{name}_se")]
        missing = [key for key in keys if key not in entry]
        if missing:
            raise CofituneError(f"These scores lack {', '.join(missing)}; they were not written by SuiteScores.")
        drift = dict.fromkeys((f"{name}?" for name in DRIFTS), (dict, type(None)))
        if problem := flaw(entry, {**dict.fromkeys(keys, float), "tasks?": {str: {str: dict}}, **drift}):
            raise CofituneError(f"These scores are damaged: {problem}; score the model anew.")
        tasks = {
            group: {name: Score.from_dict(score) for name, score in scores.items()}
            for group, scores in entry.get("tasks", {}).items()
        }
        drifts = {name: Score.from_dict(entry[name]) for name in DRIFTS if entry.get(name)}
        return cls(**{key: entry[key] for key in keys}, tasks=tasks, **drifts)


def _mean(estimates: Sequence[tuple[float, float]]) -> tuple[float, float]:
    values, errors = zip(*estimates, strict=True)
    return math.fsum(values) / len(values), math.hypot(*errors) / len(errors)
