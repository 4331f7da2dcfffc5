"""Setup of a process that tries regions, as plain data that can be sent to another process or machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..anchor import NO_ANCHOR, AnchorSettings
from ..models import load_model
from ..scoring import DRIFT_ROWS
from ..training import MemorySettings
from .data import TrialData
from .workbench import Workbench


@dataclass(frozen=True)
class TrialSetup:
    """The base, the data and how nodes are trained.

    Attributes:
        model: arguments of `load_model`, `path` among them.
        data: files of the run.
        training: fields of transformers.TrainingArguments, for every node.
        output: the folder of the search; nodes keep their checkpoints in `nodes/ID` there.
        storage: format of weights and optimizer states.
        memory: settings that save memory and time.
        checkpoint_minutes: a node that trains longer saves a checkpoint this often.
        loss, anchor: see TrainOptions.
        drift_rows: rows of `Workbench.base_states`, on which the signal has its drift.
        work: what does a job in a worker, as "module:function", called with workbench, setup and job; by default
            `run_job`.
    """

    model: Mapping[str, Any]
    data: TrialData
    training: Mapping[str, Any]
    output: str
    storage: str = "auto"
    memory: MemorySettings = field(default_factory=MemorySettings)
    checkpoint_minutes: float = 5.0
    loss: str = "ce"
    anchor: AnchorSettings = NO_ANCHOR
    drift_rows: int = DRIFT_ROWS
    work: str | None = None

    def workbench(self) -> Workbench:
        options = dict(self.model)
        return Workbench(load_model(options.pop("path"), **options), self.data)

    def node_folder(self, node: str) -> Path:
        return Path(self.output) / "nodes" / node

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialSetup:
        parts = {"data": TrialData, "memory": MemorySettings, "anchor": AnchorSettings}
        return cls(**{**values, **{name: kind(**values[name]) for name, kind in parts.items()}})
