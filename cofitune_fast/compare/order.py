"""Order of a comparison's runs: those that can change a verdict most come first."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ..methods import NamedMethod
from ..methods.runs import Run
from .curves.frontier import hull
from .curves.points import TOLERANCE

Point = tuple[float, float]  # Spec, Vers
Place = tuple[float, float | None]  # learning rate, alpha


def next_stage(
    waiting: Iterable[Run], methods: Sequence[NamedMethod], seeds: Sequence[int],
    points: Mapping[tuple[str, str], Mapping[Place, Point]],
    decide: Mapping[tuple[str, str], Collection[Place]] = MappingProxyType({}),
) -> list[Run]:
    """Return the waiting runs that can change a verdict most, in order; empty only if none wait.

    First comes every method at the middle rate of its sweep with the first seed. Then come the other rates with this
    seed. Then come the further seeds, one after another, at the places in `decide`, and last all other runs. Within a
    stage, methods near the Pareto front come first, because they can still win; within a method, rates near the middle
    come first. No run is left out.

    Args:
        points: (method, task) -> place -> (Spec, Vers) on the validation part, means over the finished runs.
        decide: (method, task) -> the places that decide, see `deciding`.
    """
    sweeps = {method.name: method.recipe.learning_rates for method in methods}
    place = {method.name: index for index, method in enumerate(methods)}

    def stage(run: Run) -> int:
        further = seeds.index(run.seed)
        if not further:
            return 1 if run.learning_rate != middle(sweeps[run.method]) else 0
        decides = (run.learning_rate, run.alpha) in decide.get((run.method, run.task), ())
        return further + (1 if decides else len(seeds))

    def worth(run: Run) -> tuple[Any, ...]:
        others = [point for (method, task), found in points.items() if task == run.task and method != run.method
                  for point in found.values()]
        behind = gap(points.get((run.method, run.task), {}).values(), others)
        away = abs(math.log(run.learning_rate / middle(sweeps[run.method])))
        return behind, place[run.method], run.task, away

    waiting = list(waiting)
    first = min(map(stage, waiting), default=0)
    return sorted((run for run in waiting if stage(run) == first), key=worth)


def target(points: Mapping[tuple[str, str], Mapping[Place, Point]], task: str, reference: str | None = None) -> float:
    """Return the Spec at which the methods are compared on a task.

    It is the reference's Spec at its highest Uni, or without a reference the highest Spec, less the tolerance.
    """
    if points.get((reference or "", task)):
        spec = max(points[reference, task].values(), key=sum)[0]
    else:
        spec = max((point[0] for (_, of), found in points.items() if of == task for point in found.values()), default=0)
    return (1 - TOLERANCE) * spec


def deciding(found: Mapping[Place, Point], target: float) -> set[Place]:
    """Return the places on which a verdict on a method rests.

    These are the frontier's corners on either side of the target Spec (or its highest corner if none reaches it), and
    the place with the highest Uni.
    """
    places = sorted(found, key=lambda place: (place[0], place[1] or 1.0))
    if not places:
        return set()
    corners = [places[index] for index in hull(*zip(*(found[place] for place in places), strict=True))]
    right = next((index for index, place in enumerate(corners) if found[place][0] >= target), len(corners) - 1)
    best = max(places, key=lambda place: sum(found[place]))
    return {corners[right], corners[max(0, right - 1)], best}


def middle(sweep: Sequence[float]) -> float:
    """Return the middle rate of a sweep; of an even number the larger of the two."""
    return float(sorted(sweep)[len(sweep) // 2])


def gap(own: Iterable[Point], others: Iterable[Point]) -> float:
    """Return how far a method is behind the Pareto front.

    It is the least amount that must be added to both scores of its best point so that no other point exceeds it in
    both. It is 0 on the front, and for a method without points.
    """
    others = list(others)
    if not others:
        return 0.0
    behind = (max(min(other[0] - point[0], other[1] - point[1]) for other in others) for point in own)
    return max(0.0, min(behind, default=0.0))
