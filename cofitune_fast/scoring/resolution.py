"""Resolution of a suite: the smallest difference of a score that its items can show, and how many would show another.

A difference d with the standard error se is told from 0 at the confidence c where |d| > z se, with z the normal
quantile of (1 + c) / 2. So z se is the smallest difference that the suite can show; a true difference of that size is
found in half of all cases. The error falls as one over the square root of the number of items, so a difference w needs
(z se / w)^2 times as many, more of each task alike. (After Miller, Adding Error Bars to Evals, arXiv 2411.00640.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from ..errors import CofituneError
from .results import SuiteScores, paired_difference
from .suite import VERSATILITY

WANTED = 0.02
"""Difference of Vers or Uni that a suite should show."""
CONFIDENCE = 0.95
_THIRDS = dict.fromkeys(VERSATILITY, 1 / len(VERSATILITY))
WEIGHTS: dict[str, dict[str, float]] = {
    "spec": {"speciality": 1}, "vers": _THIRDS, "uni": {"speciality": 1, **_THIRDS},
    **{group: {group: 1} for group in VERSATILITY},
}
"""Figures as weighted sums of groups."""


def smallest_difference(se: float, confidence: float = CONFIDENCE) -> float:
    """Smallest difference that can be told from 0, from the standard error of a difference."""
    return NormalDist().inv_cdf((1 + confidence) / 2) * se


def items_needed(se: float, items: int, wanted: float = WANTED, confidence: float = CONFIDENCE) -> int:
    """Number of items that would show the difference `wanted`, if `items` of them give the standard error `se`."""
    return math.ceil(items * (smallest_difference(se, confidence) / wanted) ** 2)


def difference_error(first: SuiteScores, second: SuiteScores | None = None, figure: str = "vers") -> float:
    """Standard error of a difference in spec, vers, uni or a group of versatility.

    With `second` it is that of first - second on the same items. Without, it is that of two independent scores as
    uncertain as `first`, which is too large for two models that answer the same items.
    Raises CofituneError if items are missing, or belong to different data.
    """
    if second is None:
        return math.sqrt(2) * getattr(first, f"{figure}_se")
    return math.hypot(*(weight * _paired_error(first, second, group) for group, weight in WEIGHTS[figure].items()))


def _paired_error(first: SuiteScores, second: SuiteScores, group: str) -> float:
    """Standard error of the difference of a group, the mean of its tasks."""
    if first.tasks[group].keys() != second.tasks[group].keys():
        raise CofituneError(f"The two scores have other tasks in the group {group}; score both on the same suite.")
    errors = [paired_difference(score, second.tasks[group][name])[1] for name, score in first.tasks[group].items()]
    return math.hypot(*errors) / len(errors)


def count_items(scores: SuiteScores, figure: str = "vers") -> int:
    """Number of items behind a figure."""
    return sum(score.n for group in WEIGHTS[figure] for score in scores.tasks[group].values())


@dataclass(frozen=True)
class Resolution:
    """Smallest difference of a figure that a suite can show.

    items: number of items. smallest: the smallest difference that they show at `confidence`.
    needed: number of items that would show the difference `wanted`; None where no item differs, so that no error can be
        estimated.
    largest: largest difference that was seen, or None. paired: False if the errors are those of independent scores.
    """

    figure: str
    items: int
    smallest: float
    needed: int | None
    largest: float | None = None
    paired: bool = False
    wanted: float = WANTED
    confidence: float = CONFIDENCE

    @property
    def blind(self) -> bool:
        """True if every difference that was seen is below the smallest one that can be shown."""
        return self.largest is not None and self.largest <= self.smallest

    def __str__(self) -> str:
        name, suite = self.figure.capitalize(), f"the suite ({self.items:,} items)"
        if self.needed is None:
            return f"No item of {suite} tells the models apart by {name}; take items that are less easy or less hard."
        if self.blind:
            what = (f"cannot tell the models apart by {name}: it shows differences from {self.smallest:.3f} on, and "
                    f"the largest seen is {self.largest:.3f}")
        else:
            what = f"shows differences of {name} from {self.smallest:.3f} on"
        fewer = "" if self.paired else " (less where two models err on the same items)"
        more = f"; to show {self.wanted:g} it would need about {_rounded(self.needed):,} items"
        return f"At {100 * self.confidence:g} % {suite} {what}{fewer}{more if self.needed > self.items else ''}."

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sentence": str(self)}


def suite_resolution(
    scores: SuiteScores, others: Iterable[SuiteScores] = (), figure: str = "vers", wanted: float = WANTED,
    confidence: float = CONFIDENCE,
) -> Resolution:
    """Compute what the suite of `scores` can show of a figure.

    others: models to be told from `scores`, on the same items; the largest of the paired errors counts. Without them
    the errors are those of independent scores, see `difference_error`.
    """
    others, items = list(others), count_items(scores, figure)
    se = max((difference_error(other, scores, figure) for other in others), default=None)
    largest = max((abs(getattr(other, figure) - getattr(scores, figure)) for other in others), default=None)
    if se is None:
        se = difference_error(scores, figure=figure)
    needed = items_needed(se, items, wanted, confidence) if se > 0 else None
    return Resolution(figure, items, smallest_difference(se, confidence), needed, largest, bool(others), wanted,
                      confidence)


def _rounded(number: int) -> int:
    """Round up to two digits, as the estimate is no better."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return math.ceil(number / unit) * unit
