"""transformers.Trainer that trains a region: delta checkpoints, MaskedAdamW, logits only where they count."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..data import Encoded, collate
from ..errors import CofituneError
from ..models import response_logits
from ..optim import MaskedAdamW
from ..regions import BaseInfo, Region, load_delta, save_delta
from .checkpoint import load_training_state, save_training_state, set_random_states


class LossNotFinite(CofituneError):
    """The loss became NaN or infinite; `step` is the number of updates made before."""

    def __init__(self, step: int, value: float):
        super().__init__(
            f"The loss is {value} at step {step + 1}; training stops. Lower training.learning_rate, or look at the "
            "data of that step."
        )
        self.step = step


class CoFiTuneTrainer(Trainer):
    """Train one region of a model with a soft mask; everything else is Trainer, its arguments unchanged.

    region: what is trained; the rest is frozen, has no gradient and no optimizer state.
    train_dataset: a list of `Encoded` rows. masks: {parameter name: soft mask}, as `Importance.masks` makes them.
    Differences to Trainer: a checkpoint holds the delta instead of the whole model, and no pickle; gradient clipping
    (`max_grad_norm`) happens inside the optimizer; only response positions reach the head; under gradient
    checkpointing the backward still ends at the lowest trained layer.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        region: Region,
        train_dataset: list[Encoded],
        *,
        base: BaseInfo,
        pad_token_id: int,
        masks: Mapping[str, Tensor] | None = None,
        mask_mode: str = "update",
        storage: str = "auto",
        **kwargs: Any,
    ):
        self.region, self.base = region, base
        self.masks, self.mask_mode, self.storage = masks, mask_mode, storage
        self.trained = region.apply(model)
        # Trainer drops dataset columns that the model's forward does not name; our collator needs its own.
        args.remove_unused_columns = False
        _refuse_reentrant(args)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            data_collator=lambda rows: collate(rows, pad_token_id),
            **kwargs,
        )
        self.remove_callback(PrinterCallback)  # standard output belongs to results
        self.add_callback(_EndBackwardAtRegion())

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model))
            groups = [
                {"params": [pair for pair in self.trained if pair[0] in decayed],
                 "weight_decay": self.args.weight_decay},
                {"params": [pair for pair in self.trained if pair[0] not in decayed], "weight_decay": 0.0},
            ]
            self.optimizer = MaskedAdamW(
                [group for group in groups if group["params"]],
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                max_grad_norm=self.args.max_grad_norm or None,
                masks=dict(self.masks) if self.masks else None,
                mask_mode=self.mask_mode,
                storage=self.storage,
                seed=self.args.seed,
            )
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> None:
        return None  # the optimizer clips in the same pass as it updates

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        return self._masked_adamw.measure_grad_norm()

    @property
    def _masked_adamw(self) -> MaskedAdamW:
        return getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Cross entropy of the response tokens, in fp32; the sum over `num_items_in_batch` where Trainer gives it."""
        logits, targets = response_logits(model, inputs)
        total = nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
        loss = total / (targets.numel() if num_items_in_batch is None else num_items_in_batch)
        if model.training and not torch.isfinite(loss):
            raise LossNotFinite(self.state.global_step, loss.item())
        return (loss, {"logits": logits}) if return_outputs else loss

    # Checkpoints ------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            save_delta(self.model, self.region, Path(output_dir or self.args.output_dir), base=self.base)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            save_training_state(output_dir, self._masked_adamw.state_dict(), self.lr_scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            optimizer, scheduler, _ = load_training_state(checkpoint)
            self._masked_adamw.load_state_dict(optimizer)
            self.lr_scheduler.load_state_dict(scheduler)

    def _save_rng_state(self, output_dir: str) -> None:
        pass  # save_training_state has them

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_random_states(load_training_state(checkpoint)[2])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_delta(self.model, resume_from_checkpoint, base_fingerprint=self.base.fingerprint)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)


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


class _EndBackwardAtRegion(TrainerCallback):
    """transformers makes the embeddings' output require a gradient whenever checkpointing is on.

    That would drag the backward through every frozen layer below the region. Non-reentrant checkpointing does not
    need it, so the hook is taken off again; the gradients of the region are the same to the bit.
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        model.disable_input_require_grads()  # does nothing where checkpointing is off


def _refuse_reentrant(args: TrainingArguments) -> None:
    # Newer releases call the same argument activation_checkpointing_kwargs.
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        if (getattr(args, name, None) or {}).get("use_reentrant"):
            raise CofituneError(
                f"training.{name}: use_reentrant=True would run the backward through all frozen layers; "
                "leave it out."
            )
