"""Options of a training besides Trainer's arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ..anchor import Anchor, ReferenceSettings
from ..errors import CofituneError
from ..losses import LOSSES, Loss
from ..memory.settings import MemorySettings
from ..optim import MaskedAdamW, MaskMode, Pull, StorageName


@dataclass(frozen=True, eq=False)
class TrainOptions:
    """Options of a training besides Trainer's arguments.

    Attributes:
        loss: loss of a response token, "ce", "dft" or "eaft"; `losses.CrossEntropy` has the formulas and their sources.
        anchor: texts of the base, some of which join every batch; the KL to the base on them is added to the loss.
        reference: adds the KL to the base on the task's own rows, which must come from `anchor.task_rows` with the same
            settings.
        masks: {parameter name: float32 factors in [0, 1] that broadcast to the parameter}, as made by
            `Importance.masks`.
        mask_mode: where the masks act, "update" (on Adam's step) or "gradient" (on its input).
        pull: pull toward the initial weights, see `optim.Pull`.
        storage: format of weights and optimizer states: "auto", "fp32", "bf16_split", "bf16_sr", "bf16" or "int8".
        memory: settings that save memory and time, see MemorySettings.
        optimizer_kind: called in place of MaskedAdamW with the same arguments; it must return an instance of a
            subclass.

    Raises:
        CofituneError: the loss is unknown.
    """

    loss: Loss = "ce"
    anchor: Anchor | None = None
    reference: ReferenceSettings | None = None
    masks: Mapping[str, Tensor] | None = None
    mask_mode: MaskMode = "update"
    pull: Pull | None = None
    storage: Literal["auto", StorageName] = "auto"
    memory: MemorySettings = field(default_factory=MemorySettings)
    optimizer_kind: Callable[..., MaskedAdamW] | None = None

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise CofituneError(f"The loss is {self.loss!r}; choose one of {', '.join(LOSSES)}.")
