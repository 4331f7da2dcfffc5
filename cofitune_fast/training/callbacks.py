"""Trainer callbacks: Ctrl-C ends a training with a checkpoint, its steps are shown, and ranks decide alike."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..memory.prefix import FrozenPrefix
from ..models.sharded import any_rank
from ..progress import Task


class StopOnInterrupt(TrainerCallback):
    """Ends training on Ctrl-C: the first one after the current step, with a checkpoint; the second one at once."""

    def __init__(self) -> None:
        self.interrupted = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGINT, self._interrupt)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.interrupted = any_rank(self.interrupted)
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()

    def restore(self) -> None:
        if hasattr(self, "_former"):
            signal.signal(signal.SIGINT, self._former)
            del self._former

    def _interrupt(self, number: int, frame: Any) -> None:
        if self.interrupted:
            self.restore()
            raise KeyboardInterrupt
        self.interrupted = True


class ShowSteps(TrainerCallback):
    """Keeps the task of a training up to date: its steps, and the loss as it was logged last; and times the steps."""

    def __init__(self, task: Task) -> None:
        self.task, self._ends = task, []

    @property
    def steady_seconds(self) -> float | None:
        """Seconds of all steps at the mean pace of those after the first; None where there are fewer than two."""
        if len(self._ends) < 2:
            return None
        return (self._ends[-1] - self._ends[0]) * len(self._ends) / (len(self._ends) - 1)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.task.total, self.task.done = state.max_steps, state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.task.done = state.global_step
        self._ends.append(time.perf_counter())

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:
        if (loss := (logs or {}).get("loss")) is not None:
            self.task.note = f"loss {float(loss):.4g}"


class EpochOfBatches(TrainerCallback):
    """Tells the batch sampler which epoch begins: Trainer of transformers 5.5 does not in a run that is resumed."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.batches.set_epoch(int(state.epoch or 0))


class SameOnAllRanks(TrainerCallback):
    """Makes all ranks follow a decision of one of them, because saving and stopping must be done together.

    Ranks can differ in clocks and signals, and so in the decisions of callbacks that use them. In a single process it
    does nothing.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for name in ("should_save", "should_evaluate", "should_log", "should_epoch_stop", "should_training_stop"):
            setattr(control, name, any_rank(getattr(control, name)))


class FrozenPart(TrainerCallback):
    """Removes the cost of the frozen layers, after Trainer has prepared the model for training.

    With gradient checkpointing, transformers makes the embeddings' output require a gradient. That would run the
    backward through every frozen layer below the region. Non-reentrant checkpointing does not need it, so the hook is
    removed. The gradients of the region are the same to the bit. `then` is called at the end.
    """

    def __init__(self, prefix: FrozenPrefix | None, then: Callable[[], None]):
        self._prefix, self._then = prefix, then

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        model.disable_input_require_grads()  # does nothing where checkpointing is off
        if self._prefix is not None:
            self._prefix.stop_checkpointing()
        self._then()
