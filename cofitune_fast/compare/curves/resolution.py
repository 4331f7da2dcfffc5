"""Smallest differences of Vers and Uni that the suite of a task can show, from the paired differences of its runs."""

from __future__ import annotations

from ...artefacts.comparison import ResolutionEntry
from ...scoring import suite_resolution
from .points import TaskCurves

FIGURES = ("vers", "uni")


def task_resolution(found: TaskCurves) -> list[ResolutionEntry]:
    """Return an entry for Vers and one for Uni, on the test part.

    The pairs are the reference's run at its best rate and those of the other methods at theirs, with one and the same
    seed; with a single method, the base and its run. Without a run the errors are those of the base alone.
    """
    base = next(iter(found.base.suites.values()))
    best = found.best(found.reference) if found.reference else None
    suite, others = base, []
    if best is not None:
        seed = min(best.runs)
        rivals = [found.best(name) for name in found.methods if name != found.reference]
        others = [point.suites[seed] for point in rivals if point is not None and seed in point.runs]
        suite, others = (best.suites[seed], others) if others else (base, [best.suites[seed]])
    return [{"task": found.task, **suite_resolution(suite, others, figure).to_dict()} for figure in FIGURES]
