"""The rows of comparison.json and of the files beside it, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..artefacts.comparison import SuiteEntry
from ..methods.run import SPLITS


def base_name(task: str) -> str:
    """The id of the base's scores on a task, among those of the runs."""
    return f"base-{task}"


def scores_row(content: Mapping[str, Any]) -> SuiteEntry:
    """Scores as comparison.json has them, from a dictionary of SuiteScores: without tasks, with the NLL per token of
    those that are scored by likelihood, and of the speciality; of the drift its figures."""
    nll = {name: score["metrics"]["nll"] for group, scores in content["tasks"].items() for name, score in scores.items()
           if score["metric"] == "likelihood" or (group == "speciality" and "nll" in score["metrics"])}
    drift = {"drift": content["drift"]["metrics"]} if "drift" in content else {}
    return {**without(content, "tasks"), "nll": nll, **drift}


def scores_entry(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Valid and test of a run's file: their scores, and under "items" all of them with per-item values."""
    return {**{split: scores_row(scores[split]) for split in SPLITS},
            "items": {split: scores[split] for split in SPLITS}}


def without(entry: Mapping[str, Any], key: str = "items") -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != key}
