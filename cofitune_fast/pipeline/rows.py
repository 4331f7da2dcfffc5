"""Rows of report.json: the base and each method, with scores, cost and state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..artefacts.run import MethodEntry, Pair
from ..methods.entries import without
from ..regions import Region
from ..scoring import SuiteScores, resampled_together, suite_resolution
from ..search.uncertainty import Estimate


def method_row(name: str, region: Region | None, entry: Mapping[str, Any]) -> MethodEntry:
    """Make the row of a method from the file of its run, see `methods.entries.run_entry`."""
    run, test = entry.get("training"), entry["test"]
    tasks = entry["items"]["test"]["tasks"] if test else {}
    return {
        "name": name,
        "region": str(region) if region is not None else None,
        "state": entry["state"],
        "why": entry["why"],
        **({key: value for key, value in test.items() if key != "nll"} if test else {}),
        "trained_parameters": run["trained_parameters"] if run else 0,
        "seconds": run["seconds"] if run else 0.0,
        "peak_memory_bytes": run["peak_memory_bytes"] if run else 0,
        "learning_rate": run["learning_rate"] if run else None,
        "epochs": run["epochs"] if run else None,
        "run": run,
        "details": {task: without(score) for scores in tasks.values() for task, score in scores.items()},
    }


def against_full(entries: Mapping[str, Mapping[str, Any]], full: str) -> list[Pair]:
    """Compare each method with full SFT on the items of the test part, paired.

    Args:
        entries: {name of a method: the file of its run}; only those that were scored are compared.
        full: name of full SFT.
    """
    scored = {name: SuiteScores.from_dict(entry["items"]["test"]) for name, entry in entries.items()
              if entry["items"]}
    if full not in scored:
        return []
    drawn = resampled_together(list(scored.values()))

    def figure(name: str, key: str) -> Estimate:
        return Estimate(getattr(scored[name], key), drawn[key][:, list(scored).index(name)])

    return [{"first": name, "second": full,
             **{key: figure(name, key).minus(figure(full, key)).to_dict() for key in ("spec", "vers", "uni")}}
            for name in scored if name != full]


def resolution_notes(base: Mapping[str, Any], entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say what the items of the test part can show of Vers and Uni, from the files of the base and of the runs."""
    scores, *others = (SuiteScores.from_dict(entry["items"]["test"]) for entry in (base, *entries) if entry["items"])
    return [str(suite_resolution(scores, others, figure)) for figure in ("vers", "uni")]


def failed_row(name: str, region: Region, why: str) -> MethodEntry:
    """Make the row of a method that could not be trained."""
    return {
        "name": name, "region": str(region), "state": "failed", "why": why, "trained_parameters": None,
        "seconds": None, "peak_memory_bytes": None, "learning_rate": None, "epochs": None, "run": None, "details": {},
    }
