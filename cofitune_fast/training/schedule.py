"""Schedule of a run: steps, epochs and rates, resolved once from its arguments, its model and its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..models.sharded import world_size
from .arguments import training_arguments
from .rates import with_learning_rate


@dataclass(frozen=True)
class Schedule:
    """Numbers that follow from a run's arguments, its model and its rows.

    Attributes:
        batch_size: rows of a micro-batch of one process.
        accumulation: micro-batches of a step.
        batches: micro-batches of an epoch.
        epochs: how often each row is seen.
        steps, warmup_steps: numbers of updates.
        data_seed: seed of the order of the rows.
        seed: seed of everything else that is random.
    """

    learning_rate: float
    batch_size: int
    accumulation: int
    batches: int
    epochs: float
    steps: int
    warmup_steps: int
    seed: int
    data_seed: int

    @classmethod
    def of(cls, training: Mapping[str, Any], model: nn.Module, rows: int, *, full: bool = False) -> Schedule:
        """Resolve the arguments of a training.

        Args:
            rows: number of training rows.
            full: every parameter is trained, not a region.

        Raises:
            CofituneError: an argument that Trainer or this package refuses.
        """
        arguments = training_arguments(with_learning_rate(training, model, full=full), "planned")
        accumulation, size = arguments.gradient_accumulation_steps, arguments.per_device_train_batch_size
        batches = math.ceil(rows / (size * world_size()))
        epochs, steps = float(arguments.num_train_epochs), arguments.max_steps
        if steps > 0:
            epochs = steps * size * accumulation * world_size() / rows
        else:
            steps = math.ceil(epochs * math.ceil(batches / accumulation))
        data_seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
        return cls(arguments.learning_rate, size, accumulation, batches, epochs, steps,
                   arguments.get_warmup_steps(steps), arguments.seed, data_seed)
