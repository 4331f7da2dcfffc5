"""Subclass of transformers.Trainer that trains a region: frozen modules cost nothing, checkpoints are deltas."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import copy
from datetime import date
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from ..anchor import Anchor
from ..data import Encoded
from ..errors import CofituneError
from ..losses import CrossEntropy, Term, TopKl, chunked_head, response_losses
from ..memory.abilities import frozen_prefix, prefix_abilities
from ..memory.cached_prefix import CachedPrefix
from ..memory.gradient_release import GradientRelease, refuse_accumulation
from ..memory.host_states import HostMaskedAdamW
from ..memory.prefix_cache import PrefixCache, why_not
from ..models.attention import trie_attention
from ..models.head import Head
from ..models.sharded import is_sharded, reshard, total, world_size
from ..optim import MaskedAdamW
from ..progress import tracked
from ..regions import BaseInfo, Region, Trainable
from .anchor_term import anchor_term
from .arguments import check_precision, check_sharded, evaluates, refuse_ineffective
from .batching import FixedBatches, KeyedRows, TrainingCollator, run_batches
from .callbacks import EpochOfBatches, FrozenPart, SameOnAllRanks, Saves
from .evaluation import EvaluatesLoss
from .figures import Figures
from .mean import Mean
from .not_finite import LossNotFinite
from .optimizer import adam_options, decay_groups
from .options import TrainOptions
from .refusals import NOT_TAKEN, check_bare, check_taken
from .rows import encoded_rows
from .saving import SavesRuns


class CoFiTuneTrainer(SavesRuns, EvaluatesLoss, Trainer):
    """Trainer that trains one region of a model, held to the base by an anchor or a mask.

    The loss of a step is mean NLL + weight * mean KL(base || model), with the KL on the anchor's texts; TrainOptions
    names the other losses, among them a KL on the task's own rows.

    It differs from transformers.Trainer in these points. A checkpoint holds the delta instead of the whole model, and
    no pickle. Gradient clipping (`max_grad_norm`) happens inside the optimizer, MaskedAdamW. Only positions with a loss
    reach the head, and their logits are never all in memory. The layers below the region run without a graph, or not at
    all where their output is cached. Rows that begin alike are packed; otherwise rows of similar length are batched. A
    batch holds the same rows in every epoch.

    A model that `models.sharded.shard` has sharded over ranks is trained as it is. Every rank takes
    per_device_train_batch_size rows of each batch, and a step equals that of one process with all rows.

    Args:
        model: a causal language model of transformers, neither compiled nor wrapped.
        args: TrainingArguments, best made by `training_arguments`. Arguments that have no effect here are refused.
        region: the part to train, also as text; everything else is frozen and has neither gradient nor optimizer state.
        train_dataset: a list or `datasets.Dataset` of `Encoded` rows or of mappings with `input_ids` and `labels`, see
            `rows.encoded_rows`; or `KeyedRows`, which also hold the anchor of `options`.
        options: see TrainOptions.
        base: name, fingerprint and dtype of the base, written into checkpoints. By default the model as it is now,
            whose bytes are all read for it.
        pad_token_id: token that pads rows of a batch; as padding is masked, any token will do.
        eval_dataset: rows on which `evaluate` measures the mean loss, in nats per response token.
        prefix_cache: open cache of the layers below the region.
        identity: what decides the run's result, written into checkpoints; see `identity.run_identity`.
        kwargs: other arguments of transformers.Trainer, such as callbacks.

    Raises:
        CofituneError: settings exclude each other, or this model does not allow them.
        LossNotFinite: the loss became NaN or infinite during training.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        region: Trainable | str = "",
        train_dataset: Sequence[Encoded | Mapping[str, Any]] | KeyedRows = (),
        options: TrainOptions = TrainOptions(),  # noqa: B008  (frozen)
        *,
        base: BaseInfo | None = None,
        pad_token_id: int = 0,
        eval_dataset: Sequence[Encoded | Mapping[str, Any]] | KeyedRows | None = None,
        prefix_cache: PrefixCache | None = None,
        identity: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        check_taken(kwargs)
        check_bare(model)
        refuse_ineffective(args)
        check_precision({"bf16": args.bf16}, model)
        if args.n_gpu > 1:
            args._n_gpu = 1  # Trainer would copy the model to all GPUs by DataParallel, at every step
        args.metric_for_best_model = args.metric_for_best_model or "loss"  # the only one; early stopping asks for it
        base = base or BaseInfo.of(model)
        region = Region.parse(region) if isinstance(region, str) else region
        self.figures, self.kept_eval_loss = Figures(), None
        self.identity, self.run_name, self.began = dict(identity or {}), secrets.token_hex(6), str(date.today())
        self.saves = next((one for one in kwargs.get("callbacks") or () if isinstance(one, Saves)), None)
        self._saved_step: int | None = None
        self._held_tokens: int | None = None  # of all micro-batches of the step
        self.region, self.base, self.options, self.prefix_cache = region, base, options, prefix_cache
        self.trained = region.apply(model)
        self.prefix = frozen_prefix(model, region)
        data = self._keyed(model, train_dataset, "train_dataset", options.anchor)
        evaluated = None if eval_dataset is None else self._keyed(model, eval_dataset, "eval_dataset")
        if evaluated is None and evaluates({"eval_strategy": args.eval_strategy.value,
                                            "eval_on_start": args.eval_on_start}):
            raise CofituneError("Evaluations during training need rows: give CoFiTuneTrainer an eval_dataset, or leave "
                                "args.eval_strategy out.")
        if args.eval_strategy.value == "no" and any(
            EarlyStoppingCallback in (one, type(one)) for one in kwargs.get("callbacks") or ()
        ):
            raise CofituneError("EarlyStoppingCallback needs evaluations; set args.eval_strategy to steps or epoch.")
        if prefix_cache is not None and (reason := why_not(model, self.prefix, args)) is not None:
            raise CofituneError(f"The prefix cannot be cached, because {reason}; leave prefix_cache out.")
        self.anchor = data.anchor
        if options.reference is not None and not any(getattr(row, "held", None) for row in data.rows):
            raise CofituneError("TrainOptions.reference is set, but no training row has the base's distributions; make "
                                "the rows with anchor.task_rows.")
        self.batches, self.eval_batches, packed = run_batches(model, data, evaluated, args, options.memory.packing)
        self.release: GradientRelease | None = None
        if options.memory.gradient_release != "off":
            refuse_accumulation(args.gradient_accumulation_steps)
        if args.world_size > 1:
            check_sharded(model, args, options.memory)
        self.head: Head | None = None
        args = copy(args)  # the caller's stays as it is
        # Trainer would remove the checkpoint of a stopped run when this one ends.
        self.checkpoint_limit, args.save_total_limit = args.save_total_limit, None
        args.remove_unused_columns = False  # the collator makes entries that the model's forward does not take
        use_cache = getattr(model.config, "use_cache", None)
        for name in NOT_TAKEN:
            kwargs.pop(name, None)
        super().__init__(
            model=model,
            args=args,
            train_dataset=data,
            eval_dataset=evaluated,
            data_collator=TrainingCollator(pad_token_id, packed, prefix_cache),
            **kwargs,
        )
        model.config.use_cache = use_cache  # Trainer's value holds while it trains, not in a model that is saved later
        self.remove_callback(PrinterCallback)  # standard output belongs to results
        self.add_callback(FrozenPart(self.prefix, self.settle_head))
        self.add_callback(EpochOfBatches(self.batches))
        self.add_callback(SameOnAllRanks())  # last, after all callbacks that decide something

    @staticmethod
    def _keyed(model: nn.Module, rows: Any, name: str, anchor: Anchor | None = None) -> KeyedRows:
        if isinstance(rows, KeyedRows):
            return rows
        return KeyedRows(encoded_rows(rows, name, model.get_input_embeddings().weight.shape[0]), anchor)

    def get_train_dataloader(self) -> DataLoader:
        return self._loader(self.train_dataset, self.batches, self.data_collator)

    def _loader(self, rows: KeyedRows, batches: FixedBatches, collator: TrainingCollator) -> DataLoader:
        names = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "multiprocessing_context",
                 "in_order")  # the last two are not in all releases
        options = {name: getattr(self.args, f"dataloader_{name}") for name in names
                   if hasattr(self.args, f"dataloader_{name}")}
        loader = DataLoader(rows, batch_sampler=batches, collate_fn=collator, **options)
        if self.args.world_size == 1:
            return self.accelerator.prepare(loader)
        from accelerate.data_loader import prepare_data_loader

        # The batches are already those of this rank, so accelerate must not split them again.
        return prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0, put_on_device=True)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # In transformers 5.5 accelerate would divide by the micro-batches a loss that Trainer has divided already.
        self.accelerator.gradient_accumulation_steps = 1
        if self.args.world_size > 1:  # FSDP2 already shards the model, so accelerate must not wrap it in DDP
            prepare_model = self.accelerator.prepare_model
            self.accelerator.prepare_model = lambda model, **options: prepare_model(
                model, **{**options, "device_placement": False, "evaluation_mode": True}
            )

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not is_sharded(model):
            super()._move_model_to_device(model, device)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as Trainer does; a checkpoint that is not whole is passed over (True) or refused (a path)."""
        with self._free_prefix():
            if self.options.memory.prefix_weights == "host" and self.prefix_cache is not None:
                self._park_prefix()
            try:
                return super().train(resume_from_checkpoint, *args, **kwargs)
            finally:
                if self.neftune_noise_alpha is not None and hasattr(self, "neftune_hook_handle"):
                    self.neftune_hook_handle.remove()  # Trainer leaves it where training ends with an error

    @contextmanager
    def _free_prefix(self) -> Iterator[None]:
        """Let a forward inside the block take packed rows and run the frozen prefix without a graph."""
        with ExitStack() as stack:
            if self.data_collator.packed:
                stack.enter_context(trie_attention(self.model))
            stack.callback(reshard, self.model)
            stack.callback(setattr, self.model.config, "use_cache", getattr(self.model.config, "use_cache", None))
            self.model.config.use_cache = self.args.use_cache
            if self.prefix_cache is not None:
                stack.callback(self.prefix_cache.flush)
            if self.prefix is not None:
                stack.callback(self.prefix.bring_back)
                stack.enter_context(self.prefix)
            yield

    def settle_head(self) -> None:
        """Find out whether the model's head allows the loss in chunks; `head` stays None where it does not.

        Call it inside `_free_prefix`, with the model on its device.
        """
        skips = self.prefix is not None and prefix_abilities(self.model, self.prefix.layer).cache
        with self.prefix.skipped() if skips else nullcontext():  # the weights of the layers below may be on the host
            self.head = chunked_head(self.model)

    def _park_prefix(self) -> None:
        """Fill the prefix cache with all rows; if it then holds them all, move the prefix's weights to the host."""
        for rows, batches in ((self.train_dataset, self.batches), (self.eval_dataset, self.eval_batches)):
            chosen = batches.batches if batches is not None else ()
            for indices in tracked(chosen, "Filling the prefix cache", "batches"):
                batch = self.data_collator([rows[index] for index in indices])
                if not self.prefix_cache.store.has_all(row.key for row in batch["placed"]):
                    batch = self._prepare_inputs(batch)
                    self.prefix_cache.keep(batch["placed"], self.prefix.states(self.model, _call(batch)))
        self.prefix_cache.flush()
        keys = [*self.train_dataset.keys, *(self.eval_dataset.keys if self.eval_dataset is not None else ())]
        if self.prefix_cache.store.has_all(keys):
            self.prefix.park()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            options, decayed = self.options, set(self.get_decay_parameter_names(self.model))
            kind = HostMaskedAdamW if options.memory.optimizer_states == "host" else MaskedAdamW
            self.optimizer = (options.optimizer_kind or kind)(
                decay_groups(self.trained, decayed, self.args.weight_decay),
                **adam_options(self.args),
                max_grad_norm=self.args.max_grad_norm or None,
                masks=dict(options.masks) if options.masks else None,
                mask_mode=options.mask_mode,
                pull=options.pull,
                storage=options.storage,
            )
            if options.memory.gradient_release != "off":
                self.release = GradientRelease(self.optimizer, options.memory.gradient_release)
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> None:
        return None  # the optimizer clips in the same pass as it updates

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        norm = self._stepper.measure_grad_norm() if self.release is None else self.release.norm
        if norm is not None:
            self.figures.add_norm(norm)
        return norm

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Run one micro-batch.

        Where gradients are released or moved to the host during the backward, the optimizer runs the backward.
        """
        loss = self._backward(model, inputs, num_items_in_batch)
        self.figures.loss.add(loss)
        return loss

    def _backward(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None) -> Tensor:
        if self.release is None and self.options.memory.optimizer_states == "device":
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if num_items_in_batch is None:
            loss = loss / self.current_gradient_accumulation_steps
        if self.args.torch_empty_cache_steps and self.state.global_step % self.args.torch_empty_cache_steps == 0:
            torch.cuda.empty_cache()
        self._stepper.backward(loss)
        return loss.detach()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Take the micro-batches of a step, and count the tokens that are held to the base in all of them."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._held_tokens = sum(len(batch.get("reference_predictors", ())) for batch in batches)
        return batches, items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the mean loss per response token plus the weighted means of anchor and reference: float32 0-d, nats.

        Means are over the tokens of the whole step, namely sums divided by `num_items_in_batch` where Trainer gives it.
        The anchor's mean is that of the means of the micro-batches. A batch whose tokens are all filtered out has loss
        0.
        """
        if return_outputs:
            raise CofituneError("CoFiTuneTrainer makes no logits that could be returned; `evaluate` gives the loss, "
                                "and cofitune evaluate scores the model.")
        targets = inputs["labels"][0, 1:]
        # FSDP averages the gradients over the ranks; multiplying by their number makes it a sum.
        items = total(len(targets)) if num_items_in_batch is None else num_items_in_batch
        items = items.clamp(min=1) if isinstance(items, Tensor) else max(items, 1)
        terms = [Term(inputs["predictors"], CrossEntropy(targets, self.options.loss), world_size() / items)]
        steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        means: list[tuple[Mean, float]] = []
        if "anchor_predictors" in inputs:
            settings = self.anchor.settings
            terms.append(anchor_term(inputs, settings, steps))
            means.append((self.figures.anchor_kl if settings.loss != "ce" else Mean(), settings.weight))
        if (reference := self.options.reference) is not None:
            held = len(inputs.get("reference_predictors", ())) if num_items_in_batch is None else self._held_tokens
            held = total(held)  # on every rank, whether this one has such tokens or not
            if "reference_predictors" in inputs:
                divergence = TopKl(inputs["reference_ids"], inputs["reference_log_p"],
                                   inputs["reference_targets"] if reference.mask_target else None)
                terms.append(Term(inputs["reference_predictors"], divergence, reference.weight * world_size() / held))
                means.append((self.figures.reference_kl, reference.weight))
        with self._forward(inputs) as call:
            losses = response_losses(model, call, terms, head=self.head, liger=self.release is None)
        for (mean, weight), term in zip(means, losses[1:], strict=True):
            mean.add(term.detach() * (steps / weight))
        loss = sum(losses)
        value = total(loss.item()) / world_size()
        if model.training and not math.isfinite(value):
            raise LossNotFinite(self.state.global_step, value)
        return loss

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        raise CofituneError("CoFiTuneTrainer does not push to the hub; when it is done, push the folder of save_model "
                            "by cofitune_fast.push_to_hub(folder, repo_id) or `cofitune push`.")

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as Trainer does, and the mean KLs of anchor and reference per token so far, in nats."""
        if "loss" in logs:
            means = {name: getattr(self.figures, name).value for name in ("anchor_kl", "reference_kl")}
            logs = {**logs, **{name: mean for name, mean in means.items() if mean is not None}}
        super().log(logs, *args, **kwargs)

    def _forward(self, inputs: dict[str, Any]) -> AbstractContextManager[dict[str, Tensor]]:
        """Prepare the arguments of the model's forward; the frozen prefix is read from the cache or written to it."""
        call = _call(inputs)
        if self.prefix_cache is None:
            return nullcontext(call)
        return CachedPrefix(self.prefix, self.prefix_cache).forward(call, inputs["placed"], inputs.get("states"))


def _call(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Select the entries of a batch that the model's forward takes."""
    names = ("input_ids", "attention_mask", "position_ids", "rows", "owners")
    return {name: batch[name] for name in names if name in batch}
