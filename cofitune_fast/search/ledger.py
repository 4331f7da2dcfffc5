"""Results of a search so far: its journal, the per-item scores beside it, and the costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CofituneError
from ..json_text import flaw, read_json, write_json
from ..scoring import Signal, SuiteScores, resampled_figures
from .journal import Journal
from .pace import Operations, Pace
from .uncertainty import Estimate, Measure

BASE = "base"
COSTS = ("seconds", "tokens", "flops", "full_sft")
_COST = {**dict.fromkeys(COSTS, float), "scoring_flops?": float,
         "training_seconds": float, "scoring_seconds": float,
         "steady_seconds?": (float, type(None))}
_FORMS = {  # of the records by their kind, see `json_text.flaw`
    "base": {"scores": dict, "cost": _COST},
    "rung": {"id": str, "end": float, "scores": dict, "cost": _COST},
    "prior": {"level": str, "values": {str: float}},
}


class Ledger:
    """Results of a search, kept on disk; a call that keeps something returns after it is on disk.

    Args:
        resamples: bootstrap draws of an estimate.
    """

    def __init__(self, journal: Journal, resamples: int):
        for number, record in enumerate(journal.records, 2):
            if problem := flaw(record, _FORMS.get(record["kind"], dict)):
                raise CofituneError(f"Line {number} of the journal {journal.path} is broken: {problem}; remove that "
                                    "line or choose another folder.")
        self._journal, self._resamples = journal, resamples
        self._scores = journal.path.parent / "scores"
        self._rungs = {(record["id"], record["end"]): record for record in journal.of_kind("rung")}
        self._estimates: dict[tuple[str, float, Measure], Estimate] = {}

    @property
    def base(self) -> dict[str, Any] | None:
        """Scores and cost of the base on the validation part, or None."""
        return next(iter(self._journal.of_kind(BASE)), None)

    def base_scores(self) -> SuiteScores:
        """Read the base's scores with their items; they must have been kept."""
        return SuiteScores.from_dict(read_json(self._file(BASE, 0.0), "scores of the base", {"uni": dict})["uni"])

    def rung(self, node: str, end: float) -> dict[str, Any] | None:
        """Return the job, scores and cost of a node's rung that ended at the fraction `end`, or None."""
        return self._rungs.get((node, end))

    def prior(self, level: str) -> dict[str, float] | None:
        """Return the prior's value of each region of a level, or None."""
        return next((record["values"] for record in self._journal.of_kind("prior") if record["level"] == level), None)

    def keep_base(self, answer: Mapping[str, Any], cost: Mapping[str, Any]) -> None:
        self._keep_items(BASE, 0.0, answer)
        self._journal.append(BASE, {"scores": answer["scores"], "cost": {**answer["cost"], **cost}})

    def keep_rung(self, job: Mapping[str, Any], answer: Mapping[str, Any], cost: Mapping[str, Any]) -> None:
        self._keep_items(job["id"], job["end"], answer)
        self._journal.append("rung", {**job, "scores": answer["scores"], "cost": {**answer["cost"], **cost}})
        self._rungs[job["id"], job["end"]] = self._journal.records[-1]

    def keep_prior(self, level: str, values: Mapping[str, float]) -> None:
        self._journal.append("prior", {"level": level, "values": dict(values)})

    def spent(self) -> dict[str, float]:
        """Sum seconds, tokens, flops and full_sft over the base and all rungs."""
        records = [*self._journal.of_kind(BASE), *self._rungs.values()]
        return {key: sum(record["cost"][key] for record in records) for key in COSTS}

    def operations(self, record: Mapping[str, Any]) -> Operations:
        """Return the operations of a record; one of an earlier version does not tell its scoring's from the others."""
        cost = record["cost"]
        scoring = cost.get("scoring_flops", 0.0 if record.get("region") else cost["flops"])
        return Operations(cost["flops"] - scoring, scoring, 1 if record.get("region") else 0)

    @property
    def pace(self) -> Pace:
        """Return the measured speed of training and of scoring so far."""
        records = [*self._journal.of_kind(BASE), *self._rungs.values()]
        return Pace.of((self.operations(record), record["cost"]) for record in records)

    @property
    def pace_of_all(self) -> float:
        """Seconds per operation so far; what writing the anchor took, which happens once, is left out."""
        spent = self.spent()
        return (spent["seconds"] - self.base["cost"]["training_seconds"]) / spent["flops"]

    def estimate(self, node: str, fraction: float, measure: Measure = "uni") -> Estimate:
        """Return a figure of a node (or of BASE at 0) after a fraction of its training, with bootstrap draws."""
        key = node, fraction, measure
        if key not in self._estimates:
            items = read_json(self._file(node, fraction), "scores of a node", {measure: dict})[measure]
            if measure == "uni":
                scores = SuiteScores.from_dict(items)
                value, drawn = scores.uni, resampled_figures(scores, self._resamples)["uni"]
            else:
                signal = Signal.from_dict(items)
                value, drawn = signal.value, signal.resampled(self._resamples)
            self._estimates[key] = Estimate(value, drawn, measure)
        return self._estimates[key]

    def _keep_items(self, node: str, fraction: float, answer: Mapping[str, Any]) -> None:
        write_json(self._file(node, fraction), answer["items"])

    def _file(self, node: str, fraction: float) -> Path:
        return self._scores / (f"{node}-{fraction:g}.json" if node != BASE else "base.json")
