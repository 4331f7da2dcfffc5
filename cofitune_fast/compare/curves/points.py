"""Points of a comparison's curves: the runs of one task by method, learning rate and alpha, over the seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import CofituneError
from ...methods.entries import base_name
from ...scoring import SuiteScores
from .draws import FIGURES, Estimate, mean_over_seeds, suite_estimates, suite_values
from .frontier import hull

TOLERANCE = 0.02
"""Relative tolerance below the reference's Spec within which speciality counts as equal."""
MEASURES = ("vers", "instruction_likelihood", "drift")
"""Figures that can stand for versatility on the plane."""


@dataclass
class Point:
    """One learning rate (and alpha) of a method: runs by seed, mean figures on valid, estimates on test.

    Attributes:
        suites: scores on the test part by seed, with items.
    """

    learning_rate: float
    alpha: float | None
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)
    missing: list[dict[str, Any]] = field(default_factory=list)
    valid: dict[str, float] = field(default_factory=dict)
    test: dict[str, Estimate] = field(default_factory=dict)
    suites: dict[int, SuiteScores] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.learning_rate:g}" + ("" if self.alpha is None else f", alpha {self.alpha:g}")

    @property
    def cost(self) -> dict[str, float]:
        costs = [run.get("cost") or {} for run in self.runs.values()]
        shared = [key for key in (costs[0] if costs else {}) if all(cost.get(key) is not None for cost in costs)]
        return {key: math.fsum(cost[key] for cost in costs) / len(costs) for key in shared}


@dataclass
class TaskCurves:
    """All points of one task.

    Attributes:
        base: the point with rate 0.
        reference: name of the reference method; None without finished runs.
    """

    task: str
    base: Point
    methods: dict[str, list[Point]]
    reference: str | None = None

    def done(self, method: str) -> list[Point]:
        return [point for point in self.methods[method] if point.runs]

    def best(self, method: str) -> Point | None:
        """Return the point with the highest Uni on valid, or None."""
        return max(self.done(method), key=lambda point: point.valid["uni"], default=None)

    def corners(self, method: str, measure: str) -> list[Point]:
        """Return the points of the frontier, the base included, chosen on valid if the measure was taken there, else on
        test.
        """
        points = [self.base, *self.done(method)]
        on_valid = all(measure in point.valid for point in points)
        place = [
            (point.valid["spec"], point.valid[measure]) if on_valid
            else (point.test["spec"].value, point.test[measure].value) for point in points
        ]  # fmt: skip
        return [points[index] for index in hull(*zip(*place, strict=True))]

    def has(self, measure: str) -> bool:
        points = [self.base, *(point for method in self.methods for point in self.done(method))]
        return all(measure in point.test for point in points)


def task_curves(content: Mapping[str, Any], items: Mapping[str, Mapping[str, SuiteScores]], task: str) -> TaskCurves:
    """Collect the points of every method on a task, with their estimates."""
    runs = [run for run in content["runs"] if run["task"] == task]
    done = [run for run in runs if run["state"] == "done"]
    base = base_name(task)
    names = [base, *(run["id"] for run in done)]
    for name in names:
        if name not in items:
            raise CofituneError(f"The per-item values of {name} are missing; score it anew.")
    for run in done:
        given = (run["test"] or {}).get("spec")
        if given is not None and abs(given - items[run["id"]]["test"].spec) > 1e-6:
            raise CofituneError(f"The per-item values of {run['id']} are not those of the run; score it anew.")
    suites = {name: items[name]["test"] for name in names}
    tested = suite_estimates(suites)
    valid = {name: suite_values(items[name]["valid"]) for name in names}
    origin = Point(0.0, None, valid=valid[base], test=tested[base],
                   suites=dict.fromkeys(content["seeds"], suites[base]))
    found = TaskCurves(task, origin, {
        method["name"]: _points([run for run in runs if run["method"] == method["name"]], content["seeds"],
                                valid, tested, suites)
        for method in content["methods"]
    })
    found.reference = _reference(content, found)
    return found


def _points(
    runs: list[dict[str, Any]], seeds: list[int], valid: Mapping[str, Any], tested: Mapping[str, Any],
    suites: Mapping[str, SuiteScores],
) -> list[Point]:
    points: dict[tuple[float, float | None], Point] = {}
    for run in runs:
        alpha = run.get("alpha")
        point = points.setdefault((run["learning_rate"], alpha), Point(run["learning_rate"], alpha))
        if run["seed"] in point.runs:
            raise CofituneError(f"Two runs stand for {run['method']} at {point}, seed {run['seed']}, on {run['task']}; "
                                "keep one of them.")
        if run["state"] == "done":
            point.runs[run["seed"]] = run
    for key, point in points.items():
        others = {run["seed"]: run for run in runs if (run["learning_rate"], run.get("alpha")) == key}
        point.missing = [
            {"seed": seed, "state": others[seed]["state"] if seed in others else "missing",
             "why": others[seed].get("why") if seed in others else None}
            for seed in seeds if seed not in point.runs
        ]  # fmt: skip
        if point.runs:
            those = {seed: run["id"] for seed, run in point.runs.items()}
            point.suites = {seed: suites[name] for seed, name in those.items()}
            point.valid = {
                figure: math.fsum(valid[name][figure] for name in those.values()) / len(those)
                for figure in FIGURES if all(figure in valid[name] for name in those.values())
            }  # fmt: skip
            point.test = {
                figure: mean_over_seeds({seed: tested[name][figure] for seed, name in those.items()})
                for figure in FIGURES if all(figure in tested[name] for name in those.values())
            }  # fmt: skip
    return sorted(points.values(), key=lambda point: (point.learning_rate, 1.0 if point.alpha is None else point.alpha))


def _reference(content: Mapping[str, Any], found: TaskCurves) -> str | None:
    best = {name: found.best(name) for name in found.methods}
    able = [name for name in found.methods if best[name]]
    wanted = content.get("reference")
    if wanted is not None and wanted not in found.methods:
        raise CofituneError(f"The reference {wanted} is no method of this comparison; name one of its methods.")
    named = [name for name in able if name == wanted or (wanted is None and plain_name(name) == "full sft")]
    return named[0] if named else max(able, key=lambda name: best[name].valid["spec"], default=None)


def plain_name(method: str) -> str:
    return " ".join(method.lower().replace("-", " ").replace("_", " ").split())


def refuse_strangers(content: Mapping[str, Any]) -> None:
    known = {"method": [method["name"] for method in content["methods"]], "task": content["tasks"],
             "seed": content["seeds"]}
    for run in content["runs"]:
        for key, names in known.items():
            if run[key] not in names:
                raise CofituneError(f"The run {run['id']} has the {key} {run[key]}, which this comparison does not "
                                    "name; take the run out or name it.")
        theirs = run.get("base_fingerprint")
        if theirs is not None and theirs != content["base"]["fingerprint"]:
            raise CofituneError(f"The run {run['id']} is of the base {theirs}, the comparison of "
                                f"{content['base']['fingerprint']}; runs of different bases cannot stand in one table.")
