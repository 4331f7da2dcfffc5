"""The room that a run needs on the disk of its output, asked for before the first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from ..files import require_room
from ..regions.delta import tensor_bytes

_STATE_BYTES = 10  # per trained element: two float32 moments and a 16-bit remainder, the most that a storage keeps


def require_room_for_training(
    trained: Sequence[tuple[str, Tensor]], arguments: TrainingArguments, output: str | Path
) -> None:
    """Refuse a run whose delta and checkpoints do not fit on the disk of `output`.

    A checkpoint is a delta and the optimizer's states. As many are counted as lie on the disk at once: those of
    `save_total_limit` and the one that is being written, at least one.

    Raises:
        CofituneError: the sentence has need, room and path.
    """
    delta = tensor_bytes(parameter for _, parameter in trained)
    states = 0 if arguments.save_only_model else _STATE_BYTES * sum(parameter.numel() for _, parameter in trained)
    require_room(output, delta + _checkpoints(arguments) * (delta + states), "the delta and its checkpoints")


def _checkpoints(arguments: TrainingArguments) -> int:
    if arguments.save_total_limit:
        return arguments.save_total_limit + 1
    if arguments.save_strategy == SaveStrategy.STEPS and arguments.max_steps > 0 and arguments.save_steps >= 1:
        return max(1, math.ceil(arguments.max_steps / arguments.save_steps))
    if arguments.save_strategy == SaveStrategy.EPOCH and arguments.max_steps <= 0:
        return max(1, math.ceil(arguments.num_train_epochs))
    return 1
