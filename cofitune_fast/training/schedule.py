"""Schedule of a run: steps, epochs and rates, resolved once from its arguments, its model and its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from ..errors import CofituneError
from ..models.sharded import world_size
from .arguments import training_arguments
from .rates import FULL_RATE, with_learning_rate


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
    def of(cls, training: Mapping[str, Any], model: nn.Module | None, rows: int, *, full: bool = False) -> Schedule:
        """Resolve the arguments of a training.

        Args:
            model: may be None if the arguments have a learning rate.
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


def refuse_standing_still(training: Mapping[str, Any], rows: int, fraction: float = 1.0) -> None:
    """Refuse a training whose only step has a learning rate of 0, as the first step of a warm-up has.

    What is trained would equal the base, and nothing would say so. It needs no model.

    Args:
        rows: number of training rows.
        fraction: share of the training, such as the first rung of a search, that must move the weights.

    Raises:
        CofituneError: one sentence with the steps and what to do.
    """
    training = {"learning_rate": FULL_RATE, **training}
    schedule = Schedule.of(training, None, rows)
    if math.ceil(fraction * schedule.steps) > 1:
        return
    arguments, warmup = training_arguments(training, "planned"), schedule.warmup_steps
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=schedule.learning_rate)
    get_scheduler(arguments.lr_scheduler_type, optimizer, num_warmup_steps=warmup, num_training_steps=schedule.steps,
                  scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs or {}))
    if optimizer.param_groups[0]["lr"] > 0:
        return
    what, rungs = "The training", ""
    if fraction < 1.0:
        what = f"The search's first rung, {fraction:g} of {schedule.steps} steps,"
        rungs = ", or give higher search.rungs"
    raise CofituneError(
        f"{what} is 1 step on {rows} rows, and the warm-up gives it a learning rate of 0, so that every weight would "
        f"stay as in the base: train longer (training.num_train_epochs), set training.warmup_steps to 0{rungs}.")
