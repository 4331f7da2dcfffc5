"""Training: the trainer on top of transformers.Trainer, its checkpoints, and one run of a region."""

from ..memory import MemorySettings
from .rates import with_learning_rate
from .run import TrainResult, last_complete_checkpoint, planned_epochs, train_region, training_arguments
from .trainer import CoFiTuneTrainer, LossNotFinite

__all__ = ["CoFiTuneTrainer", "LossNotFinite", "MemorySettings", "TrainResult", "last_complete_checkpoint",
           "planned_epochs", "train_region", "training_arguments", "with_learning_rate"]
