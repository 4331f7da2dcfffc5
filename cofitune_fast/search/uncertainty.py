"""Uncertainty of comparisons between nodes: paired differences on the same items, and many comparisons at once.

Only the sample of validation items counts as random. These errors do not include that another training seed would give
another model; docs/search.md has measurements of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from ..artefacts.search import DifferenceEntry

Measure = Literal["uni", "signal"]


@dataclass(frozen=True)
class Difference:
    """A paired difference of two nodes' figures, its standard error and a percentile interval over bootstrap draws."""

    value: float
    se: float
    low: float
    high: float

    def to_dict(self) -> DifferenceEntry:
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """A node's figure, larger is better, and its bootstrap draws, float64 [draws].

    Attributes:
        measure: the figure, "uni" or "signal" (`scoring.Signal`, in nats per token).
    """

    value: float
    draws: np.ndarray
    measure: Measure = "uni"

    def minus(self, other: Estimate, confidence: float = 0.95) -> Difference:
        drawn = self.draws - other.draws
        low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
        return Difference(self.value - other.value, float(drawn.std(ddof=1)), float(low), float(high))


def ranked(estimates: Mapping[str, Estimate]) -> list[str]:
    """Order names from the highest figure to the lowest; ties keep the given order."""
    return sorted(estimates, key=lambda name: -estimates[name].value)


def clearly_behind(estimates: Mapping[str, Estimate], confidence: float, places: int = 1) -> set[str]:
    """Return the nodes that are significantly worse than the `places`-th best, over all comparisons together."""
    order = ranked(estimates)
    reference = estimates[order[min(places, len(order)) - 1]]
    return surely_less({name: (estimates[name], reference) for name in order[places:]}, confidence)


def surely_less(pairs: Mapping[str, tuple[Estimate, Estimate]], confidence: float) -> set[str]:
    """Return the names whose first estimate is significantly below the second, one-sided, over all pairs together.

    The critical value is the `confidence` quantile of the largest studentised deviation of a pair from its estimate.
    These are simultaneous bounds as in multiple comparisons with the best (Hsu, Multiple Comparisons, 1996, chapter 4),
    computed by the bootstrap as in Westfall and Young (Resampling-Based Multiple Testing, 1993).
    """
    deviations, distances = [], {}
    for name, (one, other) in pairs.items():
        gap, drawn = other.value - one.value, other.draws - one.draws
        error = drawn.std(ddof=1)
        if error > 0:
            distances[name] = gap / error
            deviations.append((drawn - gap) / error)
        elif gap > 0:
            distances[name] = np.inf
    critical = np.quantile(np.max(deviations, axis=0), confidence) if deviations else 0.0
    return {name for name, distance in distances.items() if distance > max(critical, 0.0)}


def tied_with_best(estimates: Mapping[str, Estimate]) -> list[str]:
    """Return the best node and those behind it by at most one standard error of the paired difference, best first.

    This is the one-standard-error rule (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3), with
    the error of the difference.
    """
    order = ranked(estimates)
    best = estimates[order[0]]
    gaps = {name: best.minus(estimates[name]) for name in order}
    return [name for name in order if gaps[name].value <= gaps[name].se or name == order[0]]


def share_of_wins(estimates: Mapping[str, Estimate], name: str) -> float:
    """Return the share of draws in which `name` has the highest figure."""
    others = [estimate.draws for other, estimate in estimates.items() if other != name]
    return float((estimates[name].draws > np.max(others, axis=0)).mean()) if others else 1.0
