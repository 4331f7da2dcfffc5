"""Trainer callbacks: checkpoints by time, signals end a training with a checkpoint, steps are shown, ranks agree."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..memory.prefix import FrozenPrefix
from ..models.sharded import any_rank, highest
from ..progress import Task
from ..signals import Stopped, handled


class Saves(TrainerCallback):
    """Saves a checkpoint by time, and knows which checkpoints were asked for by the run's own settings.

    It must come after the callbacks that ask for checkpoints and before `StopOnInterrupt`.

    Args:
        seconds: a checkpoint is due this long after the last one; None: none is saved by time.

    Attributes:
        asked: the checkpoint of this step is one of `save_strategy` or of another callback, which is kept.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds, self.asked, self._saved = seconds, False, time.monotonic()
        self._asked_at = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.compute_steps(args, state.max_steps)  # in a resumed run Trainer would keep the old run's cadence
        self._saved = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._note(state, control)
        if not at_epoch_end(state):
            self._save_if_due(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._note(state, control)
        self._save_if_due(state, control)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._saved = time.monotonic()

    def _note(self, state: TrainerState, control: TrainerControl) -> None:
        if control.should_save:
            self._asked_at = state.global_step
        self.asked = self._asked_at == state.global_step

    def _save_if_due(self, state: TrainerState, control: TrainerControl) -> None:
        due = self.seconds is not None and time.monotonic() - self._saved >= self.seconds
        if due and state.global_step < state.max_steps and not control.should_training_stop:
            control.should_save = True


class StopOnInterrupt(TrainerCallback):
    """Ends training on a signal: the first one after the current step, with a checkpoint; the second one at once.

    The signals are SIGINT (Ctrl-C), SIGTERM (SLURM, Kubernetes, kill) and SIGHUP (a closed terminal). A signal that the
    process ignores, as SIGHUP under nohup, stays ignored.

    Attributes:
        signal: number of the signal that came first; None as long as there is none.
        stopped: it has ended the training before its last step.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.stopped = False
        self._former: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._former = {number: signal.signal(number, self._interrupt) for number in handled()}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.signal = int(highest(self.signal or 0)) or None
        if self.signal is not None and state.global_step < state.max_steps:
            self.stopped = control.should_training_stop = True
            control.should_save = control.should_save or not at_epoch_end(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save after what belongs to the end of an epoch, and leave that out where the epoch is not at its end."""
        if self.stopped:
            control.should_save = at_epoch_end(state)
            if not at_epoch_end(state):
                control.should_evaluate = control.should_log = False

    def restore(self) -> None:
        """Put the former handlers back."""
        for number, former in self._former.items():
            signal.signal(number, former)
        self._former = {}

    def _interrupt(self, number: int, frame: Any) -> None:
        if self.signal is not None:
            self.restore()
            raise Stopped(number)
        self.signal = number


def at_epoch_end(state: TrainerState) -> bool:
    """True after the last step of an epoch, whose evaluations and checkpoints come after the step's own."""
    return state.epoch is not None and float(state.epoch).is_integer()


class Patience(EarlyStoppingCallback):
    """Early stopping that goes on counting in a resumed run."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        kept = state.stateful_callbacks.get(type(self).__name__) or {}
        kept = kept[-1] if isinstance(kept, list) else kept
        for name, value in kept.get("attributes", {}).items():
            setattr(self, name, value)


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
