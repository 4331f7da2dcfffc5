"""transformers.Trainer that trains a region: frozen modules cost nothing, checkpoints are deltas, MaskedAdamW steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..data import Encoded
from ..errors import CofituneError
from ..memory.gradient_release import GradientRelease, refuse_accumulation
from ..memory.host_states import HostMaskedAdamW
from ..memory.prefix import FrozenPrefix
from ..memory.prefix_cache import PrefixCache
from ..memory.response_loss import response_loss, takes_chunks
from ..memory.settings import MemorySettings
from ..models.attention import takes_tries, trie_attention
from ..optim import MaskedAdamW
from ..regions import BaseInfo, Region, load_delta, save_delta
from .batching import FixedBatches, KeyedRows, TrainingCollator, packing_gain
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
    train_dataset: `Encoded` rows. masks: {parameter name: soft mask}, as `Importance.masks` makes them.
    memory: see MemorySettings; prefix_cache: the open cache of the layers below the region, if there is to be one.
    Differences to Trainer: a checkpoint holds the delta instead of the whole model, and no pickle; gradient clipping
    (`max_grad_norm`) happens inside the optimizer; only response positions reach the head, and their logits never stand
    all in memory; the layers below the region run without a graph, or not at all where their output is cached; rows
    that begin alike are packed, others batched by length, and a batch holds the same rows in every epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        region: Region,
        train_dataset: Sequence[Encoded] | KeyedRows,
        *,
        base: BaseInfo,
        pad_token_id: int,
        masks: Mapping[str, Tensor] | None = None,
        mask_mode: str = "update",
        storage: str = "auto",
        memory: MemorySettings = MemorySettings(),  # noqa: B008  (frozen)
        prefix_cache: PrefixCache | None = None,
        **kwargs: Any,
    ):
        self.region, self.base = region, base
        self.masks, self.mask_mode, self.storage = masks, mask_mode, storage
        self.memory, self.prefix_cache = memory, prefix_cache
        self.trained = region.apply(model)
        self.prefix = FrozenPrefix.of(model, region)
        data = train_dataset if isinstance(train_dataset, KeyedRows) else KeyedRows(train_dataset)
        self.batches, packed = _batches(model, data.rows, args, memory.packing)
        self.release: GradientRelease | None = None
        if memory.gradient_release != "off":
            refuse_accumulation(args.gradient_accumulation_steps)
        self.chunked = False
        args.remove_unused_columns = False  # our collator needs what the model's forward does not name
        _refuse_reentrant(args)
        super().__init__(
            model=model,
            args=args,
            train_dataset=data,
            data_collator=TrainingCollator(pad_token_id, packed, prefix_cache),
            **kwargs,
        )
        self.remove_callback(PrinterCallback)  # standard output belongs to results
        self.add_callback(_FrozenPart(self))

    def get_train_dataloader(self) -> DataLoader:
        return self.accelerator.prepare(DataLoader(
            self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers, pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        ))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        packed = trie_attention(self.model) if self.data_collator.packed else nullcontext()
        try:
            with packed:
                if self.memory.prefix_weights == "host" and self.prefix_cache is not None:
                    self._park_prefix()
                return super().train(*args, **kwargs)
        finally:
            if self.prefix is not None:
                self.prefix.__exit__()
                self.prefix.bring_back()
            if self.prefix_cache is not None:
                self.prefix_cache.flush()

    def _park_prefix(self) -> None:
        """Fill the cache by a pass over all rows; if it then holds them all, the prefix's weights go to the host."""
        with self.prefix:
            for indices in self.batches.batches:
                batch = self.data_collator([self.train_dataset[index] for index in indices])
                if not self.prefix_cache.store.has_all(row.key for row in batch["placed"]):
                    batch = self._prepare_inputs(batch)
                    self.prefix_cache.keep(batch["placed"], self.prefix.states(self.model, _call(batch)))
        self.prefix_cache.flush()
        if self.prefix_cache.store.has_all(self.train_dataset.keys):
            self.prefix.park()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model))
            groups = [
                {"params": [pair for pair in self.trained if pair[0] in decayed],
                 "weight_decay": self.args.weight_decay},
                {"params": [pair for pair in self.trained if pair[0] not in decayed], "weight_decay": 0.0},
            ]
            kind = HostMaskedAdamW if self.memory.optimizer_states == "host" else MaskedAdamW
            self.optimizer = kind(
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
            if self.memory.gradient_release != "off":
                self.release = GradientRelease(self.optimizer, self.memory.gradient_release)
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> None:
        return None  # the optimizer clips in the same pass as it updates

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        return self._masked_adamw.measure_grad_norm() if self.release is None else self.release.norm

    @property
    def _masked_adamw(self) -> MaskedAdamW:
        return getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """One micro-batch; where gradients leave the device as they are made, the optimizer runs the backward."""
        if self.release is None and self.memory.optimizer_states == "device":
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if num_items_in_batch is None:
            loss = loss / self.current_gradient_accumulation_steps
        (self.release or self._masked_adamw).backward(loss)
        return loss.detach()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Cross entropy of the response tokens, in fp32; the sum over `num_items_in_batch` where Trainer gives it."""
        if return_outputs:
            raise CofituneError("CoFiTuneTrainer makes no logits that could be returned; score the model with "
                                "cofitune evaluate.")
        targets = inputs["labels"][0, 1:]
        scale = 1 / (len(targets) if num_items_in_batch is None else num_items_in_batch)
        with self._forward(inputs) as call:
            loss = response_loss(model, call, inputs["predictors"], targets, scale, chunked=self.chunked,
                                 liger=self.release is None)
        if model.training and not torch.isfinite(loss):
            raise LossNotFinite(self.state.global_step, loss.item())
        return loss

    @contextmanager
    def _forward(self, inputs: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
        """What the model's forward takes; the frozen prefix comes from the cache, or goes there."""
        call = _call(inputs)
        if self.prefix_cache is None:
            yield call
            return
        shape = tuple(inputs["input_ids"].shape)
        states = (inputs["states"].result() if "states" in inputs else
                  self.prefix_cache.states(inputs["placed"], shape))
        if states is not None:
            del call["input_ids"]
            with self.prefix.replaced_by(states.to(inputs["labels"].device, non_blocking=True)) as substitute:
                yield {**call, **substitute}
            return
        self.prefix.bring_back()  # were its weights on the host, a row of the cache is damaged
        with self.prefix.keeping() as kept:
            yield call
        self.prefix_cache.keep(inputs["placed"], kept[0])

    # Checkpoints ------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            save_delta(self.model, self.region, Path(output_dir or self.args.output_dir), base=self.base)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            optimizer = (self.release or self._masked_adamw).state_dict()
            save_training_state(output_dir, optimizer, self.lr_scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            optimizer, scheduler, _ = load_training_state(checkpoint)
            (self.release or self._masked_adamw).load_state_dict(optimizer)
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


class _FrozenPart(TrainerCallback):
    """Makes the frozen part free, once Trainer has done to the model what it does before training.

    transformers makes the embeddings' output require a gradient whenever checkpointing is on. That would drag the
    backward through every frozen layer below the region. Non-reentrant checkpointing does not need it, so the hook is
    taken off again; the gradients of the region are the same to the bit.
    """

    def __init__(self, trainer: CoFiTuneTrainer):
        self._trainer = trainer

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        model.disable_input_require_grads()  # does nothing where checkpointing is off
        trainer, prefix = self._trainer, self._trainer.prefix
        if prefix is None:
            trainer.chunked = takes_chunks(model)
            return
        prefix.__enter__()
        weight = trainer.model.get_input_embeddings().weight
        with prefix.replaced_by(weight.new_zeros(1, 1, weight.shape[1])) as one_token:  # the layers below may be away
            trainer.chunked = takes_chunks(model, one_token)


def _call(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """What of a batch the model's forward takes."""
    names = ("input_ids", "attention_mask", "position_ids", "rows", "owners")
    return {name: batch[name] for name in names if name in batch}


def _batches(
    model: nn.Module, rows: Sequence[Encoded], args: TrainingArguments, packing: str
) -> tuple[FixedBatches, bool]:
    """The batches of a run, and whether their rows are packed."""
    lengths = [len(row.input_ids) for row in rows]
    shuffle = getattr(args, "train_sampling_strategy", "random") != "sequential"
    seed = args.seed if args.data_seed is None else args.data_seed

    def batches(by_length: bool) -> FixedBatches:
        return FixedBatches(lengths, args.train_batch_size, seed, by_length=by_length, shuffle=shuffle,
                            drop_last=args.dataloader_drop_last)

    possible = takes_tries(model, max(lengths))
    if packing == "on" and not possible:
        raise CofituneError("memory.packing is on, but this model's attention is not sdpa (it is "
                            f"{model.config.get_text_config()._attn_implementation}) or its sliding window is shorter "
                            "than the longest row; set it to auto.")
    at_random = batches(by_length=False)
    if packing == "on" or (packing == "auto" and possible and packing_gain(rows, at_random.batches) >= 1.1):
        return at_random, True
    return batches(by_length=True), False


def _refuse_reentrant(args: TrainingArguments) -> None:
    # Newer releases call the same argument activation_checkpointing_kwargs.
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        if (getattr(args, name, None) or {}).get("use_reentrant"):
            raise CofituneError(
                f"training.{name}: use_reentrant=True would run the backward through all frozen layers; "
                "leave it out."
            )
