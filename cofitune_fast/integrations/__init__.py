"""Parts for other people's training loops and Trainers."""

from .callback import CoFiTuneCallback
from .chunked_loss import ChunkedLoss
from .delta_checkpoints import DeltaCheckpoints
from .optimizer import masked_adamw
from .protection import Protect, protect
from .reference import reference_model

__all__ = [
    "ChunkedLoss", "CoFiTuneCallback", "DeltaCheckpoints", "Protect", "masked_adamw", "protect", "reference_model",
]  # fmt: skip
