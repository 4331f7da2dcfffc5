"""Callbacks of a training: Ctrl-C ends it with a checkpoint, and ranks that train together decide alike."""

from __future__ import annotations

import signal
import threading
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..models.sharded import any_rank


class StopOnInterrupt(TrainerCallback):
    """The first Ctrl-C ends training after the step at hand, with a checkpoint; the second ends it at once."""

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


class SameOnAllRanks(TrainerCallback):
    """What one rank decides after a step, all do: saving and stopping are done together. Does nothing in one process.

    Clocks and signals differ among ranks, and what callbacks decide by them with it.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for name in ("should_save", "should_evaluate", "should_log", "should_epoch_stop", "should_training_stop"):
            setattr(control, name, any_rank(getattr(control, name)))
