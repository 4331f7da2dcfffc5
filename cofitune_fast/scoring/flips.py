"""Flips: items that one model answers right and another wrong, with McNemar's exact test.

The two models answer the same items, so only the items on which they differ tell them apart. If neither were better,
each of these n items would have gone either way with probability 1/2. The test is two-sided: twice the probability of
the smaller count or fewer under Binomial(n, 1/2), at most 1 (McNemar, Psychometrika 12, 1947, in its exact form).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..errors import CofituneError
from .metrics import FollowedItem, GeneratedItem
from .results import ItemScore, Score, SuiteScores
from .suite import GROUPS, VERSATILITY


class Flips(NamedTuple):
    """Items that went from right to wrong, from wrong to right, and the number of all items."""

    right_to_wrong: int
    wrong_to_right: int
    items: int

    @property
    def p(self) -> float:
        return mcnemar(self.right_to_wrong, self.wrong_to_right)

    def to_dict(self) -> dict[str, Any]:
        return {**self._asdict(), "p": self.p}

    @classmethod
    def sum(cls, flips: Iterable[Flips]) -> Flips:
        """Add the flips of several tasks."""
        return cls(*map(sum, zip(*flips, strict=True)))


def mcnemar(one: int, other: int) -> float:
    """Two-sided p of McNemar's exact test, from the numbers of items that flipped one way and the other."""
    flipped = one + other
    tail = sum(math.comb(flipped, count) for count in range(min(one, other) + 1))
    return min(1.0, 2 * tail / 2**flipped)


def score_flips(before: Score, after: Score) -> Flips | None:
    """Count the flips of one task, or return None if its items are neither right nor wrong.

    An item of a choice is right if the gold choice was preferred, one of a continuation or response if every token of
    the answer is the most probable one, a generated answer if the number is right, IFEval's if all instructions are
    followed. Raises CofituneError unless both scores have the per-item values of the same items.
    """
    if not before.items or not after.items or len(before.items) != len(after.items):
        raise CofituneError("Flips need the per-item values of two scores of the same items; score both anew.")
    pairs = [(is_right(before.metric, one), is_right(after.metric, other))
             for one, other in zip(before.items, after.items, strict=True)]
    return None if any(None in pair for pair in pairs) else _count(pairs)


def suite_flips(before: SuiteScores, after: SuiteScores) -> dict[str, Flips]:
    """Count the flips from one model to another: {group: Flips} of the groups with such items, and "vers".

    A group's flips are those of all its tasks together, and "vers" has those of its three groups.
    """
    found = {}
    for group in GROUPS:
        tasks = [score_flips(score, after.tasks[group][name]) for name, score in before.tasks[group].items()]
        if counted := [task for task in tasks if task is not None]:
            found[group] = Flips.sum(counted)
    if kept := [found[group] for group in VERSATILITY if group in found]:
        found["vers"] = Flips.sum(kept)
    return found


def is_right(metric: str, item: Any) -> bool | None:
    """True if an item was answered right, see `score_flips`; None if its kind is neither right nor wrong."""
    if isinstance(item, ItemScore):
        return item.correct
    if isinstance(item, GeneratedItem):
        return item.last_number if metric == "last_number" else item.exact_answer
    return all(item.followed) if isinstance(item, FollowedItem) else None


def _count(pairs: Iterable[tuple[bool, bool]]) -> Flips:
    pairs = list(pairs)
    return Flips(sum(before and not after for before, after in pairs),
                 sum(after and not before for before, after in pairs), len(pairs))
