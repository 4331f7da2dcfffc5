"""Training of a region: Trainer's arguments, the schedule, a subclass of transformers.Trainer, and one run."""

from ..memory import MemorySettings
from .arguments import (
    check_arguments,
    check_precision,
    decisive,
    evaluates,
    training_arguments,
    without_evaluations,
)
from .checkpoint import find_checkpoint, last_complete_checkpoint
from .options import TrainOptions
from .rates import with_learning_rate
from .run import TrainResult, train_region
from .schedule import Schedule
from .trainer import CoFiTuneTrainer, LossNotFinite

__all__ = ["CoFiTuneTrainer", "LossNotFinite", "MemorySettings", "Schedule", "TrainOptions", "TrainResult",
           "check_arguments", "check_precision", "decisive", "evaluates", "find_checkpoint", "last_complete_checkpoint",
           "train_region", "training_arguments", "with_learning_rate", "without_evaluations"]
