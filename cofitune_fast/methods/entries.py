"""The files of finished runs, and the rows of comparison.json, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .run import SPLITS
from .runs import Run


def base_name(task: str) -> str:
    """The id of the base's scores on a task, among those of the runs."""
    return f"base-{task}"


def scores_row(content: Mapping[str, Any]) -> dict[str, Any]:
    """SCORES of comparison.json from a dictionary of SuiteScores: without tasks, with the NLL per token of those that
    are scored by likelihood, and of the speciality; of the drift its figures."""
    nll = {name: score["metrics"]["nll"] for group, scores in content["tasks"].items() for name, score in scores.items()
           if score["metric"] == "likelihood" or (group == "speciality" and "nll" in score["metrics"])}
    drift = {"drift": content["drift"]["metrics"]} if "drift" in content else {}
    return {**without(content, "tasks"), "nll": nll, **drift}


def scores_entry(scores: Mapping[str, Any] | None) -> dict[str, Any]:
    """valid and test of a run's file: SCORES, and under "items" all of them with per-item values; None for a part that
    was not scored."""
    if scores is None:
        return {**dict.fromkeys(SPLITS), "items": None}
    there = [split for split in SPLITS if split in scores]
    return {**{split: scores_row(scores[split]) if split in there else None for split in SPLITS},
            "items": {split: scores[split] for split in there}}


def run_entry(run: Run, result: Mapping[str, Any]) -> dict[str, Any]:
    """The file of a run from the result of `run_method`, which may have scored several interpolations."""
    by_alpha = {scores["alpha"]: scores for scores in result["scores"]}
    scoring = result["cost"]["scoring_seconds"] / max(1, len(by_alpha))
    cost = {**result["cost"], "scoring_seconds": scoring, "seconds": result["cost"]["training_seconds"] + scoring}
    return {**run.to_dict(), "state": result["state"], "why": result["why"], **scores_entry(by_alpha.get(run.alpha)),
            "cost": cost, "training": result["training"]}


def without(entry: Mapping[str, Any], key: str = "items") -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != key}
