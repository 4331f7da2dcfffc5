"""Two models on the same items: differences with paired intervals, and the items that flipped.

Models with other tokenizers split an answer into other tokens, so a likelihood per token means another thing for each.
Where that is so, it is computed per byte of the answer's text (UTF-8) for both, as lm-eval's byte_perplexity is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CofituneError
from .flips import Flips, is_right, score_flips
from .metrics import FollowedItem, GeneratedItem
from .resolution import difference_error, smallest_difference
from .results import SUMMARY, ItemScore, Score, SuiteScores, make_score, paired_difference
from .suite import GROUPS, VERSATILITY
from .tasks import ChoiceItem, ContinuationItem, InstructionItem, Item, Task

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
        low and high are the ends of the paired 95 % interval.
    """
    tasks = {group: {name: {
        "metric": one.metric, "per_byte": one.per_byte, "n": one.n, "first": one.first.value,
        "first_se": one.first.se, "second": one.second.value, "second_se": one.second.se,
        **_interval(one.difference, one.se), "flips": one.flips.to_dict() if one.flips else None,
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
            figure: {"first": getattr(first, figure), "second": getattr(second, figure),
                     **_interval(getattr(first, figure) - getattr(second, figure),
                                 difference_error(first, second, figure))}
            for figure in SUMMARY}
    return {**entry, "tasks": tasks, "flips": {group: found.to_dict() for group, found in flips.items()},
            "flipped": [dict(vars(item)) for entries in pairs.values() for one in entries.values()
                        for item in one.flipped]}


def _interval(value: float, se: float) -> dict[str, float]:
    half = smallest_difference(se)
    return {"value": value, "se": se, "low": value - half, "high": value + half}
