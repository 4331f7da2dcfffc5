"""The methods that are compared on one base: what each trains, and with which mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..anchor import Anchor
from ..artefacts.run import MethodEntry
from ..regions import Region
from ..scoring import SuiteScores
from ..training import TrainResult
from ..trials import Workbench


@dataclass(frozen=True)
class Method:
    """`training` goes over the run's training arguments; `masks` is None for a run without a soft mask; loss and anchor
    are those of `training.train_region`."""

    name: str
    region: Region | None
    training: Mapping[str, Any] = field(default_factory=dict)
    masks: Mapping[str, Tensor] | None = None
    mask_mode: str = "update"
    loss: str = "ce"
    anchor: Anchor | None = None

    @property
    def slug(self) -> str:
        return self.name.lower().replace(" ", "-")


BASE = Method("base", None)


def method_row(
    bench: Workbench, method: Method, scores: SuiteScores, run: TrainResult | None = None, seconds: float = 0.0
) -> MethodEntry:
    """The method as a row of report.json: scores with standard errors, and the cost of the run (none for the base)."""
    content = scores.to_dict()
    tasks = content.pop("tasks")
    return {
        "name": method.name,
        "region": str(method.region) if method.region is not None else None,
        **content,
        "trained_parameters": run.trained_parameters if run else 0,
        "seconds": run.seconds if run else seconds,
        "peak_memory_bytes": run.peak_memory_bytes if run else 0,
        "learning_rate": run.learning_rate if run else None,
        "epochs": run.epochs if run else None,
        "run": run.to_dict() if run else None,
        "details": {name: score for group in tasks.values() for name, score in group.items()},
    }
