"""Input and output of the planner: settings, and the predicted memory plan."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, get_args

from ..models.quantized import Quantize
from .follow import Step
from .work import WorkCount

PARTS = ("frozen_weights", "region_weights", "gradients", "optimizer", "activations", "loss", "prefix_stream",
         "workspace")
QUANTIZE = get_args(Quantize)  # from the largest to the smallest
PHASES = ("forward", "loss", "backward", "step")


@dataclass(frozen=True)
class Settings:
    """Settings that determine memory and time besides model and region, named as in the configuration.

    batch_size: rows of a step, in `accumulation` micro-batches of equal size.
    anchor_rows: rows of an anchor that are added to each micro-batch; they count with the full length.
    response_length: number of predicted tokens among the `length` tokens of a row.
    masked: one float32 factor per row of each matrix.
    prefix: the states below the region are "computed", are computed and stored in the cache ("filled"), or are read
        from it ("cached").
    prefix_weights: "host" if the layers below the region are not on the device.
    own_memory: the device has memory of its own; False for a CPU, whose memory is the host's.
    """

    batch_size: int = 8
    length: int = 512
    response_length: int = 256
    storage: str = "bf16_sr"
    masked: bool = False
    gradient_checkpointing: bool = False
    gradient_release: str = "off"
    optimizer_states: str = "device"
    quantize: Quantize = "none"
    prefix: str = "computed"
    prefix_weights: str = "device"
    accumulation: int = 1
    anchor_rows: int = 0
    own_memory: bool = True

    @property
    def rows(self) -> int:
        """Rows of a micro-batch, without those of the anchor."""
        return -(-self.batch_size // self.accumulation)

    def step(self) -> Step:
        """Properties of a step for the tracker. The first step of "lagged" is an exact one, so both have one peak."""
        release = self.gradient_release != "off" or self.optimizer_states == "host" or self.accumulation > 1
        rows = self.rows + self.anchor_rows
        return Step(rows, self.length, rows * min(self.response_length, self.length - 1),
                    self.gradient_checkpointing, release, self.gradient_release != "off", self.quantize)


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted memory of a training step, in bytes of the device if not said otherwise.

    parts: bytes by part at the peak; their sum is the peak. phases: {phase: its peak}.
    host: bytes on the host ("optimizer", "prefix_weights").
    cache_per_row: bytes on disk of a row of full length in the prefix cache.
    filling: peak while the prefix cache is filled; 0 without a cache. With prefix_weights "host" the cache is filled by
        a pass without gradients, and the prefix's weights are on the device before and after training.
    work: work of a whole step without the optimizer. optimizer_bytes: memory traffic of the optimizer.
    """

    region: str
    settings: Settings
    trained_parameters: int
    total_parameters: int
    parts: dict[str, int]
    phases: dict[str, int]
    host: dict[str, int]
    cache_per_row: int
    filling: int
    work: WorkCount
    optimizer_bytes: int

    @property
    def peak(self) -> int:
        return sum(self.parts.values())

    @property
    def need(self) -> int:
        """Bytes that the whole run needs at once, the filling of the prefix cache included.

        What is on the host counts where the device has no memory of its own.
        """
        return max(self.peak, self.filling) + (0 if self.settings.own_memory else sum(self.host.values()))

    @property
    def phase(self) -> str:
        """Phase in which the peak occurs."""
        return max(self.phases, key=self.phases.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "work": self.work._asdict(), "peak": self.peak, "phase": self.phase}
