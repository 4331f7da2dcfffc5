"""Trainer callbacks: Ctrl-C ends a training with a checkpoint, and ranks decide alike."""

from __future__ import annotations

import signal
import threading
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..models.sharded import any_rank


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
