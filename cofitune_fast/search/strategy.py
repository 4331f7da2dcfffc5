"""Strategies: how far each child of a level is trained, and which nodes go on."""

from __future__ import annotations

import difflib
import itertools
from dataclasses import dataclass, replace
from typing import get_args

from ..errors import CofituneError
from .uncertainty import Measure


@dataclass(frozen=True)
class Strategy:
    """Plan of a search: how far the children of a level are trained, and which of them go on.

    In a race a level goes through the rungs below 1 only, beside the best nodes of the levels above. After each rung,
    nodes that are significantly worse on the same items are dropped, and also those outside the best share `keep`. The
    level ends once at most `beam` nodes remain. At the end the levels' winners are trained to the last rung.

    Attributes:
        rungs: rising fractions of a node's training; the last is 1.
        beam: number of nodes of a level whose children are tried next; None stands for all.
        race: drop nodes early.
        keep: largest share of a level's nodes that passes a rung.
        early: what the rungs below 1 are judged by: "signal" (`scoring.Signal`, which needs few items) or "uni". The
            last rung is judged by Uni.
        confidence: confidence level over all comparisons of a rung together.
        resamples: bootstrap draws of the validation items.

    Raises:
        CofituneError: a value is out of range.
    """

    name: str = "racing"
    rungs: tuple[float, ...] = (0.125, 1.0)
    beam: int | None = 1
    race: bool = True
    keep: float = 0.5
    early: Measure = "signal"
    confidence: float = 0.95
    resamples: int = 2000

    def __post_init__(self) -> None:
        steps = (0.0, *self.rungs)
        if len(steps) < 2 or steps[-1] != 1.0 or not all(a < b for a, b in itertools.pairwise(steps)):
            raise CofituneError(f"search.rungs is {list(self.rungs)}; give rising fractions of the training that end "
                                "with 1, such as [0.25, 0.5, 1].")
        if self.race and (len(self.rungs) < 2 or self.beam is None):
            raise CofituneError("A race needs a rung below 1 in search.rungs, and a search.beam.")
        if self.beam is not None and self.beam < 1:
            raise CofituneError(f"search.beam is {self.beam}; it must be at least 1.")
        if self.early not in get_args(Measure):
            raise CofituneError(f"search.early is {self.early!r}; it must be signal or uni.")
        if not 0 < self.keep <= 1:
            raise CofituneError(f"search.keep is {self.keep}; it must be above 0 and at most 1, which drops nothing "
                                "that may be as good.")
        if not 0.5 <= self.confidence < 1:
            raise CofituneError(f"search.confidence is {self.confidence}; it must be at least 0.5 and below 1.")

    def measure(self, fraction: float) -> Measure:
        """Return what nodes are judged by after a fraction of their training."""
        return "uni" if fraction == 1.0 or not self.race else self.early


STRATEGIES = {
    "greedy": Strategy("greedy", (1.0,), race=False),
    "exhaustive": Strategy("exhaustive", (1.0,), beam=None, race=False),
    "racing": Strategy(),
}


def named_strategy(name: str, **changes: object) -> Strategy:
    """Return a strategy by name with changed settings; changes that are None are ignored."""
    if name not in STRATEGIES:
        nearest = difflib.get_close_matches(name, STRATEGIES, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(STRATEGIES)}."
        raise CofituneError(f"Unknown search strategy {name!r}; {hint}")
    return replace(STRATEGIES[name], **{key: value for key, value in changes.items() if value is not None})
