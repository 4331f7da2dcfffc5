"""What is asked of a plan, and what it says."""

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
    """What decides about memory and time besides model and region; names and values are those of the configuration.

    batch_size: rows of a step, in `accumulation` micro-batches of equal size, with each of which `anchor_rows` of an
    anchor come, counted as long as the others. response_length: of `length`, predicted.
    masked: one float32 factor per row of each matrix. prefix: the states below the region are "computed", or "filled"
    into the cache too, or read, "cached". prefix_weights "host": the layers below the region are not on the device.
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

    @property
    def rows(self) -> int:
        """Of a micro-batch, without the anchor's."""
        return -(-self.batch_size // self.accumulation)

    def step(self) -> Step:
        """The first step of "lagged" is an exact one, so both have the same peak."""
        release = self.gradient_release != "off" or self.optimizer_states == "host" or self.accumulation > 1
        rows = self.rows + self.anchor_rows
        return Step(rows, self.length, rows * min(self.response_length, self.length - 1),
                    self.gradient_checkpointing, release, self.gradient_release != "off", self.quantize)


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted bytes of a training step. `parts` at the peak, which they sum up to, and `phases` {phase: its peak}.

    host: bytes of the host beside them ("optimizer", "prefix_weights"). cache_per_row: bytes that a row of full length
    takes in the prefix cache, on disk. filling: where the prefix is cached, the peak of a step that computes it, too;
    with prefix_weights "host" what it takes that these weights are on the device before and after the training, for a
    pass without gradients that fills the cache. work: of a whole step, the optimizer's left out; optimizer_bytes: its
    traffic.
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
    def phase(self) -> str:
        """The phase of the peak."""
        return max(self.phases, key=self.phases.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "work": self.work._asdict(), "peak": self.peak, "phase": self.phase}
