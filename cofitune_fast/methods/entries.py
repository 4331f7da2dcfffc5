"""Plain-data content of the files of finished runs and of the rows of comparison.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..artefacts.comparison import SuiteEntry
from ..artefacts.scores import FlipCount
from ..scoring import DRIFTS, SuiteScores, suite_flips
from .run import SPLITS
from .runs import Run


def base_name(task: str) -> str:
    """Return the id under which the base's scores on a task are kept among the runs."""
    return f"base-{task}"


def scores_row(content: Mapping[str, Any]) -> SuiteEntry:
    """Convert a dictionary of SuiteScores to the scores of comparison.json.

    The tasks are left out. Added are the NLL per token of the speciality and of the tasks scored by likelihood, and the
    metrics of the drifts.
    """
    nll = {name: score["metrics"]["nll"] for group, scores in content["tasks"].items() for name, score in scores.items()
           if score["metric"] == "likelihood" or (group == "speciality" and "nll" in score["metrics"])}
    drifts = {name: content[name]["metrics"] for name in DRIFTS if name in content}
    return {**without(content, "tasks"), "nll": nll, **drifts}


def scores_entry(scores: Mapping[str, Any] | None) -> dict[str, Any]:
    """Make the scores of a run's file: `valid`, `test`, and under "items" the scores with all per-item values.

    A part that was not scored is None.
    """
    if scores is None:
        return {**dict.fromkeys(SPLITS), "items": None}
    there = [split for split in SPLITS if split in scores]
    return {**{split: scores_row(scores[split]) if split in there else None for split in SPLITS},
            "items": {split: scores[split] for split in there}}


def run_entry(run: Run, result: Mapping[str, Any]) -> dict[str, Any]:
    """Make the file of a run from the result of `run_method`, which may have scored several interpolations."""
    by_alpha = {scores["alpha"]: scores for scores in result["scores"]}
    scoring = result["cost"]["scoring_seconds"] / max(1, len(by_alpha))
    cost = {**result["cost"], "scoring_seconds": scoring, "seconds": result["cost"]["training_seconds"] + scoring}
    return {**run.to_dict(), "state": result["state"], "why": result["why"], **scores_entry(by_alpha.get(run.alpha)),
            "cost": cost, "training": result["training"]}


def flips_entry(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, FlipCount]:
    """Return {group or "vers": flipped items} of two models, from their dictionaries of SuiteScores with items."""
    suites = map(SuiteScores.from_dict, (before, after))
    return {group: flips.to_dict() for group, flips in suite_flips(*suites).items()}


def without(entry: Mapping[str, Any], key: str = "items") -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != key}
