"""Two models on the same items: differences with paired intervals, and the items that flipped.

Models with other tokenizers split an answer into other tokens, so a likelihood per token means another thing for each.
Where that is so, it is computed per byte of the answer's text (UTF-8) for both, as lm-eval's byte_perplexity is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CofituneError
from .flips import Flips, is_right, score_flips
from .metrics import FollowedItem, GeneratedItem
from .resolution import WEIGHTS, difference_error, smallest_difference
from .results import SUMMARY, ItemScore, Score, SuiteScores, make_score, paired_difference
from .suite import GROUPS, VERSATILITY
from .tasks import ChoiceItem, ContinuationItem, InstructionItem, Item, Task

_SHARES = ("accuracy", "exact", "exact_answer", "last_number", "prompt_level_strict_acc")
"""Metrics that are the share of right items."""

Scores = Mapping[str, Mapping[str, Score]]
"""Scores by group and task."""


@dataclass(frozen=True)
class FlippedItem:
    """Item that one model answers right and the other wrong.

    way: "right_to_wrong" or "wrong_to_right", from the second model to the first.
    index: its place in the task. where: its place in the data file. prompt: its text. answer: the right one.
    texts: what the first and the second model wrote, where they were to write.
    """

    group: str
    task: str
    index: int
    way: str
    where: str
    prompt: str
    answer: str
    texts: tuple[str, str] | None = None


@dataclass(frozen=True)
class PairedTask:
    """One task: the scores of the first and the second model, and first - second.

    metric: name of the score; per_byte: it is per byte of the answers. n: items. flips: from the second model to the
    first; None if items are neither right nor wrong.
    """

    metric: str
    per_byte: bool
    n: int
    first: Score
    second: Score
    difference: float
    se: float
    flips: Flips | None
    flipped: Sequence[FlippedItem]

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the paired 95 % interval of the difference: of a share of right items by `share_interval`, of any
        other score from its standard error.
        """
        if self.metric in _SHARES and self.flips:
            return share_interval(self.flips)
        half = smallest_difference(self.se)
        return self.difference - half, self.difference + half


def share_interval(flips: Flips) -> tuple[float, float]:
    """Ends of the 95 % interval of the difference of two shares of the same items, of those that flipped.

    With half an item added to each of the four kinds (right or wrong before and after) it is the normal one, so that it
    is not empty where no item flipped (Agresti and Min, Statistics in Medicine 24, 2005).
    """
    n, lost, gained = flips.items + 2, flips.right_to_wrong + 0.5, flips.wrong_to_right + 0.5
    value = (gained - lost) / n
    half = smallest_difference(math.sqrt(lost + gained - (gained - lost) ** 2 / n) / n)
    return max(-1.0, value - half), min(1.0, value + half)


def _figure_interval(pairs: Mapping[str, Mapping[str, PairedTask]], figure: str, value: float) -> tuple[float, float]:
    """Ends of the interval of a weighted sum of tasks, from theirs: value -+ the root of the weighted squares of the
    tasks' own distances (Zou and Donner, Statistics in Medicine 27, 2008). For normal intervals it is the normal one.
    """
    tasks = [(weight / len(pairs[group]), one.difference, *one.interval)
             for group, weight in WEIGHTS[figure].items() for one in pairs[group].values()]
    return (value - math.hypot(*(weight * max(0.0, mean - low) for weight, mean, low, _ in tasks)),
            value + math.hypot(*(weight * max(0.0, high - mean) for weight, mean, _, high in tasks)))


def pair_tasks(
    first: Scores, second: Scores, tasks: Mapping[str, Sequence[Task]], *, same_rows: bool = False
) -> dict[str, dict[str, PairedTask]]:
    """Compare the scores of two models, task by task; the result is {group: {task: PairedTask}}.

    tasks: those that were scored, by group.
    same_rows: True if both models have one tokenizer and one limit of tokens, so that both leave out the same rows.

    Raises:
        CofituneError: the two have not answered the same items of a task, or scores are without items.
    """
    found: dict[str, dict[str, PairedTask]] = {}
    for group, scores in first.items():
        by_name = {task.name: task for task in tasks[group]}
        found[group] = {name: _pair(group, by_name[name], score, second[group][name], same_rows)
                        for name, score in scores.items()}
    return found


def _pair(group: str, task: Task, first: Score, second: Score, same_rows: bool) -> PairedTask:
    whole = len(first.items) == len(second.items) == len(task.items)
    if not whole and task.kind == "response" and not same_rows:
        raise CofituneError(
            f"Of the {len(task.items)} rows of the task {task.name} {len(first.items)} fit into the one model and "
            f"{len(second.items)} into the other, so that they cannot be paired; leave the longest rows out.")
    items = task.items if whole else None
    per_byte = "likelihood" in first.metrics and any(
        one.tokens != other.tokens for one, other in zip(first.items, second.items, strict=True))
    if per_byte:
        first, second = (_in_bytes(score, task.items) for score in (first, second))
    flips = score_flips(second, first)
    difference, se = paired_difference(first, second)
    return PairedTask(first.metric, per_byte and first.metric == "likelihood", first.n, first, second, difference, se,
                      flips, _flipped(group, task.name, first, second, items) if flips else ())


def _in_bytes(score: Score, items: Sequence[Item]) -> Score:
    """Take the bytes of the answers in the place of their tokens."""
    counted = [ItemScore(one.nll, max(1, len(_answer(item).encode())), one.correct)
               for one, item in zip(score.items, items, strict=True)]
    return make_score(counted, score.metric, "accuracy" if "accuracy" in score.metrics else "exact")


def _flipped(
    group: str, task: str, first: Score, second: Score, items: Sequence[Item] | None
) -> list[FlippedItem]:
    found = []
    for index, (one, other) in enumerate(zip(first.items, second.items, strict=True)):
        after, before = is_right(first.metric, one), is_right(second.metric, other)
        if after == before:
            continue
        item = items[index] if items else None
        texts = (one.text, other.text) if isinstance(one, GeneratedItem | FollowedItem) else None
        found.append(FlippedItem(group, task, index, "wrong_to_right" if after else "right_to_wrong",
                                 item.where if item else "", _prompt(item) if item else "",
                                 _answer(item) if item else "", texts))
    return found


def _prompt(item: Item) -> str:
    if isinstance(item, ChoiceItem):
        return item.query
    if isinstance(item, ContinuationItem):
        return item.context
    if isinstance(item, InstructionItem):
        return item.prompt
    content = item.prompt[-1]["content"] if item.prompt else ""
    return content if isinstance(content, str) else str(content)


def _answer(item: Item) -> str:
    if isinstance(item, ChoiceItem):
        return item.choices[item.gold]
    if isinstance(item, ContinuationItem):
        return item.continuation
    return "" if isinstance(item, InstructionItem) else item.response


def paired_suites(pairs: Mapping[str, Mapping[str, PairedTask]]) -> tuple[SuiteScores, SuiteScores]:
    """Summarise the scores of the first and of the second model; all four groups are needed."""
    first, second = (SuiteScores.of({group: {name: getattr(one, side) for name, one in pairs[group].items()}
                                     for group in GROUPS}) for side in ("first", "second"))
    return first, second


def pairs_entry(pairs: Mapping[str, Mapping[str, PairedTask]]) -> dict[str, Any]:
    """Plain values of a comparison for JSON.

    Returns:
        differences: {figure: {first, second, value, se, low, high}} of Spec, Vers, Uni and the groups, if all four
            groups are there.
        tasks: {group: {task: {metric, per_byte, n, first, first_se, second, second_se, value, se, low, high, flips}}}.
        flips: {group, "vers" or "all": {right_to_wrong, wrong_to_right, items, p}}; "all" has those of the
            four groups.
        flipped: the items that flipped, see `FlippedItem`.
        low and high are the ends of the paired 95 % interval, see `PairedTask.interval`; they need not lie evenly
            about the difference.
    """
    tasks = {group: {name: {
        "metric": one.metric, "per_byte": one.per_byte, "n": one.n, "first": one.first.value,
        "first_se": one.first.se, "second": one.second.value, "second_se": one.second.se,
        **_difference(one.difference, one.se, one.interval), "flips": one.flips.to_dict() if one.flips else None,
    } for name, one in entries.items()} for group, entries in pairs.items()}
    flips = {group: Flips.sum(found) for group, entries in pairs.items()
             if (found := [one.flips for one in entries.values() if one.flips])}
    if kept := [flips[group] for group in VERSATILITY if group in flips]:
        flips["vers"] = Flips.sum(kept)
    if groups := [flips[group] for group in GROUPS if group in flips]:
        flips["all"] = Flips.sum(groups)
    entry: dict[str, Any] = {}
    if all(pairs.get(group) for group in GROUPS):
        first, second = paired_suites(pairs)
        entry["differences"] = {
            figure: {"first": (one := getattr(first, figure)), "second": (other := getattr(second, figure)),
                     **_difference(one - other, difference_error(first, second, figure),
                                   _figure_interval(pairs, figure, one - other))}
            for figure in SUMMARY}
    return {**entry, "tasks": tasks, "flips": {group: found.to_dict() for group, found in flips.items()},
            "flipped": [dict(vars(item)) for entries in pairs.values() for one in entries.values()
                        for item in one.flipped]}


def _difference(value: float, se: float, interval: tuple[float, float]) -> dict[str, float]:
    return {"value": value, "se": se, "low": interval[0], "high": interval[1]}
