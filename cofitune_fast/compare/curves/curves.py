"""Curves and verdicts of a comparison, computed with numpy from plain data.

`curves_and_verdicts` makes three lists for comparison.json, described in `artefacts.comparison`: a `CurveEntry` for
each task and method in their order, a `Verdict` for each task and measure, and a `ResolutionEntry` for each task and
figure.

The *reference* is the method that `content["reference"]` names, or the one called full SFT, or else the method with the
highest Spec at its best rate. A method's best rate is the one with the highest Uni on valid. A point without a run has
no values. A point that lacks seeds has the mean of those present, and lists the missing ones with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...artefacts.comparison import PointEntry
from ...scoring import SuiteScores
from .flips import flips_over_seeds
from .points import MEASURES, Point, refuse_strangers, task_curves
from .resolution import task_resolution
from .verdicts import choices, task_verdicts


def curves_and_verdicts(
    content: Mapping[str, Any], items: Mapping[str, Mapping[str, SuiteScores]]
) -> dict[str, list[dict[str, Any]]]:
    """Return {"curves", "verdicts", "resolution"} of a comparison as plain values for JSON.

    Args:
        content: comparison.json without these three.
        items: {run id: {"valid": SuiteScores, "test": SuiteScores}} with per-item values, for every finished run and
            for the base as `base_name(task)`.

    Raises:
        CofituneError: runs differ in base or data, scores lack items, a run has an unknown method, task or seed, two
            runs have the same settings, or items belong to another run.
    """
    refuse_strangers(content)
    curves, verdicts, resolution = [], [], []
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
        resolution += task_resolution(found)
    return {"curves": curves, "verdicts": verdicts, "resolution": resolution}


def point_dict(point: Point, base: Point) -> PointEntry:
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
        "flips": flips_over_seeds(base.suites, point.suites),
        "cost": point.cost or None,
    }
