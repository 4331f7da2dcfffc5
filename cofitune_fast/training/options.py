"""How a region is trained, beside Trainer's arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..anchor import Anchor
from ..errors import CofituneError
from ..losses import LOSSES
from ..memory.settings import MemorySettings
from ..optim import MaskedAdamW, Pull


@dataclass(frozen=True, eq=False)
class TrainOptions:
    """loss: of a response token, see `losses.CrossEntropy`. anchor: texts of the base, some of which come with every
    batch; their KL to the base is added to the loss. masks: {parameter name: soft mask}, as `Importance.masks` makes
    them; mask_mode: where they act, "update" or "gradient". pull: toward the initial weights, see `optim.Pull`.
    storage: the format of weights and optimizer states. memory: what the run does to need less of it. optimizer_kind:
    called in place of MaskedAdamW, with its arguments; makes a subclass of it.
    """

    loss: str = "ce"
    anchor: Anchor | None = None
    masks: Mapping[str, Tensor] | None = None
    mask_mode: str = "update"
    pull: Pull | None = None
    storage: str = "auto"
    memory: MemorySettings = field(default_factory=MemorySettings)
    optimizer_kind: Callable[..., MaskedAdamW] | None = None

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise CofituneError(f"The loss is {self.loss!r}; choose one of {', '.join(LOSSES)}.")
