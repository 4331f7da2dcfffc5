"""Verdicts of a comparison: its methods at their best rates, and at equal speciality on their frontiers.

`artefacts.comparison.Verdict` describes a verdict, and `VerdictRowEntry.outcome` when a method is ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...artefacts.comparison import Below, Chosen, ChosenPoint, IntervalEntry, Verdict, VerdictRowEntry
from .draws import Estimate
from .flips import flips_over_seeds
from .frontier import mean_loss, supports, versatility_at
from .points import MEASURES, TOLERANCE, Point, TaskCurves, plain_name

WORDS = {"vers": "Vers", "instruction_likelihood": "instruction likelihood", "drift": "KL to the base (nats per token)"}


def choices(found: TaskCurves, method: str) -> Chosen:
    """Return the method's points chosen on valid, as rows of the table."""
    points, reference = found.methods[method], found.best(found.reference) if found.reference else None
    if reference is None or not found.done(method):
        return {"uni": None, "equal_spec": None}
    enough = (1 - TOLERANCE) * reference.valid["spec"]
    able = [point for point in found.done(method) if point.valid["spec"] >= enough]
    kept = max(able, key=lambda point: point.valid["vers"], default=None)
    chosen = {"uni": found.best(method), "equal_spec": kept}
    return {
        name: None if point is None else {"point": points.index(point), **_row(point, reference)}
        for name, point in chosen.items()
    }


def _row(point: Point, reference: Point) -> ChosenPoint:
    differences = {
        figure: estimate - reference.test[figure] for figure, estimate in point.test.items() if figure in reference.test
    }
    times = [entry.cost.get("training_seconds") for entry in (point, reference)]
    seeds = min(len(point.runs), len(reference.runs))
    return {
        "minus_reference": {figure: difference.to_dict() for figure, difference in differences.items()},
        "outcome": {figure: _sign(*difference.interval(), seeds) for figure, difference in differences.items()},
        "time_of_reference": times[0] / times[1] if None not in times and times[1] > 0 else None,
        "flips": flips_over_seeds(reference.suites, point.suites) if point is not reference else {},
    }  # fmt: skip


def _sign(low: float, high: float, seeds: int) -> str:
    if low <= 0 <= high:
        return "level"
    return "open" if seeds < 2 else "ahead" if low > 0 else "behind"


def task_verdicts(found: TaskCurves, content: Mapping[str, Any]) -> list[Verdict]:
    """Return the verdicts of a task by every measure.

    `content["rivals"]` names the methods that all others are compared with, by default the reference and every method
    whose name begins with LoRA.
    """
    lora = [name for name in found.methods if plain_name(name).startswith("lora")]
    rivals = list(dict.fromkeys([*filter(None, [found.reference]), *content.get("rivals", lora)]))
    return [_verdict(found, measure, [name for name in rivals if name in found.methods]) for measure in MEASURES]


def _verdict(found: TaskCurves, measure: str, rivals: list[str]) -> Verdict:
    best = found.best(found.reference) if found.reference else None
    verdict = {
        "task": found.task, "measure": measure, "reference": found.reference,
        "reference_rate": best.learning_rate if best else None, "tolerance": TOLERANCE, "target": None,
        "rivals": rivals, "rows": [],
    }  # fmt: skip
    if best is None:
        return verdict | {"sentence": f"No run on {found.task} is done yet."}
    if not found.has(measure):
        return verdict | {"sentence": f"{WORDS[measure]} was not measured in every run on {found.task}: not judged."}
    target = best.test["spec"] * (1 - TOLERANCE)
    places = {method: _place(found, method, measure, target) for method in found.methods if found.done(method)}
    rows = [_verdict_row(found, method, measure, places, rivals, target) for method in places]
    return verdict | {"target": target.to_dict(), "rows": rows, "sentence": _summary(found, measure, rows, target)}


class _Place:
    """A method's frontier at the target speciality."""

    def __init__(self, corners: list[Point], base: Point, measure: str, target: Estimate):
        own = [corner for corner in corners if corner is not base]
        figures = ([corner.test[figure].value for corner in corners] for figure in ("spec", measure))
        self.between = [corners[index] for index in supports(*figures, target.value)]
        self.highest = max((corner.test["spec"] for corner in corners), key=lambda estimate: estimate.value)
        self.reaches = target.value <= self.highest.value
        self.seeds = min((len(corner.runs) for corner in self.between if corner is not base), default=0)
        self.missing = [{"at": str(corner), **entry} for corner in own for entry in corner.missing]
        self.versatility = _of_draws(versatility_at, corners, measure, target)
        self.loss = base.test[measure] - self.versatility
        self.mean_loss = _of_draws(mean_loss, corners, measure, base.test["spec"], base.test[measure], target)


def _place(found: TaskCurves, method: str, measure: str, target: Estimate) -> _Place:
    return _Place(found.corners(method, measure), found.base, measure, target)


def _of_draws(function: Any, corners: list[Point], measure: str, *others: Estimate) -> Estimate:
    """Apply a function of (spec [draws, corners], measure [draws, corners], ...) to the estimates and to every draw."""
    pairs = [[corner.test[figure] for corner in corners] for figure in ("spec", measure)]
    value = function(*(np.array([[one.value for one in pair]]) for pair in pairs),
                     *(np.array([one.value]) for one in others))
    draws = function(*(np.stack([one.draws for one in pair], axis=1) for pair in pairs),
                     *(one.draws for one in others))
    return Estimate(float(value[0]), draws)


def _verdict_row(
    found: TaskCurves, method: str, measure: str, places: Mapping[str, _Place], rivals: list[str], target: Estimate
) -> VerdictRowEntry:
    place = places[method]
    others = {name: places[name] for name in rivals if name != method and name in places}
    outcome = {name: _outcome(place, other) for name, other in others.items()}
    both = {name: other for name, other in others.items() if outcome[name] != "unreached"}
    below = {name: _below(found, method, name, measure, places) for name in others if name not in both}
    row = {
        "method": method, "reaches": place.reaches, "highest_spec": place.highest.to_dict(),
        "between": ["base" if corner is found.base else str(corner) for corner in place.between]
        if place.reaches else None,
        "seeds": place.seeds, "missing": place.missing,
        **{key: getattr(place, key).to_dict() if place.reaches else None
           for key in ("versatility", "loss", "mean_loss")},
        "share": {name: _share(place.loss, other.loss) for name, other in both.items()},
        "difference": {name: (place.versatility - other.versatility).to_dict() for name, other in both.items()},
        "outcome": outcome, "below": below,
    }  # fmt: skip
    return row | {"sentence": _sentence(found.task, measure, row, places, target)}


def _below(
    found: TaskCurves, method: str, rival: str, measure: str, places: Mapping[str, _Place]
) -> Below:
    """Compare two methods at the highest Spec that both reach, where that is less than the target."""
    spec = min((places[name].highest for name in (method, rival)), key=lambda estimate: estimate.value)
    one, other = (_place(found, name, measure, spec) for name in (method, rival))
    return {
        "spec": spec.to_dict(), "loss": one.loss.to_dict(), "rival_loss": other.loss.to_dict(),
        "share": _share(one.loss, other.loss), "difference": (one.versatility - other.versatility).to_dict(),
        "outcome": _outcome(one, other),
    }  # fmt: skip


def _outcome(place: _Place, other: _Place) -> str:
    if not (place.reaches and other.reaches):
        return "unreached"
    (low, high), (other_low, other_high) = place.loss.interval(), other.loss.interval()
    if low <= other_high and other_low <= high:
        return "level"
    return "open" if min(place.seeds, other.seeds) < 2 else "ahead" if high < other_low else "behind"


def _share(loss: Estimate, other: Estimate) -> IntervalEntry | None:
    return loss.share_of(other).to_dict() if other.interval()[0] > 0 else None


# In words --------------------------------------------------------------------------------------------------------


def _sentence(task: str, measure: str, row: Mapping[str, Any], places: Mapping[str, _Place], target: Estimate) -> str:
    method, spec = row["method"], f"a Spec of {target.value:.3f}"
    if row["reaches"]:
        parts = [f"at {spec}, {method} {_lost(row['loss'], measure)}"]
    else:
        parts = [f"{method} does not reach {spec}; its highest is {_interval(row['highest_spec'])}"]
    for rival, outcome in row["outcome"].items():
        if outcome == "unreached":
            below = row["below"][rival]
            parts.append(f"at a Spec of {below['spec']['value']:.3f}, which {rival} reaches too, "
                         f"it {_lost(below['loss'], measure)}" if places[rival].reaches else
                         f"{rival} does not reach it; at {below['spec']['value']:.3f} {method} "
                         f"{_lost(below['loss'], measure)}")
            loss, share, outcome = below["rival_loss"], below["share"], below["outcome"]
        else:
            loss, share = places[rival].loss.to_dict(), row["share"][rival]
        note = f" ({method} {_interval(share, 2)} times that)" if share else ""
        parts.append(f"{rival} {_lost(loss, measure)}{note}: {outcome}")
    return f"On {task}, " + "; ".join(parts) + "." + _provisional(row)


def _provisional(row: Mapping[str, Any]) -> str:
    gone: dict[str, list[str]] = {}
    for entry in row["missing"]:
        gone.setdefault(f"seed {entry['seed']} {entry['state']}", []).append(entry["at"])
    notes = ["a single seed"] if row["seeds"] == 1 else []
    notes += [f"{what} at {', '.join(places)}" for what, places in gone.items()]
    return f" Provisional: {'; '.join(notes)}." if notes else ""


def _interval(entry: Mapping[str, float], digits: int = 3) -> str:
    return "{value:.{d}f} [{low:.{d}f}, {high:.{d}f}]".format(**entry, d=digits)


def _lost(loss: Mapping[str, float], measure: str) -> str:
    if measure == "drift":
        return f"has a KL to the base of {_interval(loss, 4)}"
    if loss["value"] >= 0:
        return f"loses {_interval(loss)} of {WORDS[measure]}"
    gain = {"value": -loss["value"], "low": -loss["high"], "high": -loss["low"]}
    return f"gains {_interval(gain)} of {WORDS[measure]}"


def _summary(found: TaskCurves, measure: str, rows: list[dict[str, Any]], target: Estimate) -> str:
    reference = found.reference
    groups = {
        f"ahead of {reference}": "ahead", f"level with {reference}": "level", f"behind {reference}": "behind",
        "open for want of seeds": "open",
    }  # fmt: skip
    texts = []
    for words, outcome in groups.items():
        names = [row["method"] for row in rows if row["outcome"].get(reference) == outcome]
        if names:
            texts.append(f"{words}: {', '.join(names)}")
    short = [row["method"] for row in rows if not row["reaches"]]
    if short:
        texts.append(f"short of that Spec: {', '.join(short)}")
    start = f"On {found.task}, by {WORDS[measure]} at a Spec of {target.value:.3f}, "
    return start + ("; ".join(texts) if texts else f"there is nothing beside {reference}") + "."

