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
from .identity import changes, differences, run_identity
from .not_finite import LossNotFinite
from .options import TrainOptions
from .rates import with_learning_rate
from .run import TrainResult, train_region
from .schedule import Schedule, refuse_standing_still
from .trainer import CoFiTuneTrainer

__all__ = ["CoFiTuneTrainer", "LossNotFinite", "MemorySettings", "Schedule", "TrainOptions", "TrainResult",
           "changes", "check_arguments", "check_precision", "decisive", "differences", "evaluates",
           "find_checkpoint", "last_complete_checkpoint", "refuse_standing_still", "run_identity", "train_region",
           "training_arguments", "with_learning_rate", "without_evaluations"]
