"""Mixin for any Trainer: the cross entropy of labels without the logits of all tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..data import label_predictors
from ..errors import CofituneError
from ..losses import chunked_head, response_loss
from ..models.head import Head
from ..models.mode import evaluation_mode

_NOT_FOR_FORWARD = ("labels", "use_cache", "num_items_in_batch")


class ChunkedLoss:
    """Mixin that stands before transformers.Trainer among a class's bases, for rows with `labels`.

        class MyTrainer(ChunkedLoss, Trainer): ...

    Only tokens with a label reach the head, and of a frozen head a chunk of them at a time, so that their logits are
    never all in memory. The loss is the one that transformers computes: the sum over the labelled tokens, divided by
    their number or by `num_items_in_batch`. A subclass's own `compute_loss` gets it from `super().compute_loss`. Where
    outputs are asked for (`return_outputs`, `compute_metrics`, `predict`), Trainer makes all logits as ever.

    Raises:
        CofituneError: at the first loss, where the loss is another one than the cross entropy of labels, or the model
            is compiled or wrapped.
    """

    _described: tuple[nn.Module, Head | None] | None = None
    _loss_alone = False

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        self._loss_alone = prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._loss_alone = False

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss in nats: float32, 0-d; with `return_outputs` also the model's outputs."""
        if return_outputs and not self._loss_alone:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._refuse(model, inputs)
        mask, targets = label_predictors(inputs["labels"])
        places = mask.flatten().nonzero().squeeze(1)
        if len(targets) == 0 and self._loss_alone:  # as transformers has it: such a batch says nothing and is left out
            nothing = torch.tensor(float("nan"), device=mask.device)
            return (nothing, {"loss": nothing}) if return_outputs else nothing
        items = len(targets) if num_items_in_batch is None else num_items_in_batch
        items = items.clamp(min=1) if isinstance(items, Tensor) else max(items, 1)
        call = {name: value for name, value in inputs.items() if name not in _NOT_FOR_FORWARD}
        with self.accelerator.autocast():  # the loss comes after the model's forward, which has its own
            loss = response_loss(model, call, places, targets, 1 / items, head=self._head(model))
        return (loss, {"loss": loss}) if return_outputs else loss

    def _head(self, model: nn.Module) -> Head | None:
        """Return what is known of the head, found out once; None while it is trained."""
        if any(one.requires_grad for one in model.get_output_embeddings().parameters()):
            return None
        if self._described is None or self._described[0] is not model:
            with evaluation_mode(model):
                self._described = model, chunked_head(model)
        return self._described[1]

    def _refuse(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        if "labels" not in inputs:
            raise CofituneError("ChunkedLoss needs rows with labels, which are -100 where nothing is learnt; use a "
                                "collator that makes them, or leave the mixin out.")
        if model is not self.model or getattr(model, "_compiled_call_impl", None) is not None:
            raise CofituneError("ChunkedLoss takes a model that is neither compiled nor wrapped; leave "
                                "args.torch_compile out and start one process, or leave the mixin out.")
        reasons = {"compute_loss_func is given": self.compute_loss_func is not None,
                   "args.label_smoothing_factor is set": self.label_smoother is not None,
                   "the rows come with shift_labels": "shift_labels" in inputs,
                   "the model adds a loss of its router": getattr(model.config, "output_router_logits", False)}
        for reason, present in reasons.items():
            if present:
                raise CofituneError(f"ChunkedLoss computes the cross entropy of labels alone, but {reason}; leave one "
                                    "of them out.")
