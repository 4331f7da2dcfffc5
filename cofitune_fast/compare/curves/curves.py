"""From the runs of a comparison to its curves and verdicts: pure numpy on plain data.

`curves_and_verdicts` makes two lists for comparison.json. An *interval* is {"value", "low", "high"}: an estimate on the
test part with its 95 % interval (see `draws`). FIGURES are those of `draws.FIGURES` that a point's runs have.

curves, one for each task and method in their order:
    {"task", "method",
     "points": [{"learning_rate", "alpha", "seeds": [those present], "missing": [{"seed", "state", "why"}],
                 "interval_of": "items and seeds" | "items" (one seed) | None (no run),
                 "valid": {FIGURE: mean over the seeds present}, "test": {FIGURE: interval},
                 "minus_base": {FIGURE: interval of the paired difference}, "cost": COST | None}],
     "frontier": {MEASURE: [indices of the points on it, by rising speciality; null is the base]},
     "chosen": {"uni": ROW | None, "equal_spec": ROW | None}}
    COST is the mean over the seeds present of each entry of the runs' costs.
    chosen: on the valid part, "uni" by the highest Uni, "equal_spec" by the least loss of Vers among the points whose
    Spec is at most 2 % below the reference's. A ROW is the chosen point with "point" (its index), "minus_reference":
    {FIGURE: interval of the paired difference}, "outcome": {FIGURE: ahead | level | behind | open}, by whether this
    interval holds 0 (open: it does not, but one of the two has a single seed), and "time_of_reference": training
    seconds as a share of the reference's, or None.

verdicts, one for each task and measure: see `verdicts`.

The *reference* is the method `content["reference"]` names, or the one called full SFT, or else the method with the
highest Spec at its best rate; its best rate is the one of the highest Uni on valid. A point without a run has no
values. One that lacks seeds has the mean of those present, and says which are missing and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...scoring import SuiteScores
from .points import MEASURES, Point, refuse_strangers, task_curves
from .verdicts import choices, task_verdicts


def curves_and_verdicts(
    content: Mapping[str, Any], items: Mapping[str, Mapping[str, SuiteScores]]
) -> dict[str, list[dict[str, Any]]]:
    """{"curves", "verdicts"} of a comparison, as described above; plain values for JSON.

    content: comparison.json without these two. items: {run id: {"valid": SuiteScores, "test": SuiteScores}} with the
    per-item values of every run that is done, and of the base as `base_name(task)`.

    Raises:
        CofituneError: runs of different base or data, scores without items, a run of an unknown method, task or seed,
            two runs of the same settings, or items that are not those of the run.
    """
    refuse_strangers(content)
    curves, verdicts = [], []
    for task in content["tasks"]:
        found = task_curves(content, items, task)
        for method, points in found.methods.items():
            corners = {measure: found.corners(method, measure) for measure in MEASURES if found.has(measure)}
            curves.append({
                "task": task,
                "method": method,
                "points": [point_dict(point, found.base) for point in points],
                "frontier": {measure: [None if point is found.base else points.index(point) for point in those]
                             for measure, those in corners.items()},
                "chosen": choices(found, method),
            })
        verdicts += task_verdicts(found, content)
    return {"curves": curves, "verdicts": verdicts}


def point_dict(point: Point, base: Point) -> dict[str, Any]:
    return {
        "learning_rate": point.learning_rate,
        "alpha": point.alpha,
        "seeds": sorted(point.runs),
        "missing": point.missing,
        "interval_of": None if not point.runs else "items" if len(point.runs) == 1 else "items and seeds",
        "valid": point.valid,
        "test": {figure: estimate.to_dict() for figure, estimate in point.test.items()},
        "minus_base": {figure: (estimate - base.test[figure]).to_dict() for figure, estimate in point.test.items()
                       if figure in base.test},
        "cost": point.cost or None,
    }
