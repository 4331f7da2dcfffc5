"""Mixin of CoFiTuneTrainer: evaluations, which measure the loss of response tokens and keep no logits."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from ..errors import CofituneError
from ..losses import CrossEntropy, Term, response_losses
from ..memory.abilities import takes_tries
from ..models.sharded import total
from .batching import evaluation_batches
from .refusals import NO_LOGITS


class EvaluatesLoss:
    """Overrides Trainer's evaluation; it stands before Trainer among a class's bases."""

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the batches of `eval_dataset`, by default of the rows that the trainer was made with."""
        if eval_dataset is None or eval_dataset is self.eval_dataset:
            return self._loader(self.eval_dataset, self.eval_batches, self.data_collator)
        rows = self._keyed(self.model, eval_dataset, "eval_dataset")
        longest = max(len(row.input_ids) for row in rows.rows)
        packed = self.data_collator.packed and takes_tries(self.model, longest)
        return self._loader(rows, evaluation_batches(rows, self.args), replace(self.data_collator, packed=packed))

    @torch.no_grad()
    def evaluation_loop(
        self, dataloader: DataLoader, description: str, prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Measure the mean cross entropy per response token in nats, as metric `eval_loss`; no predictions are kept."""
        model, losses, tokens = self.model, 0.0, 0
        training = self.is_in_train
        self.callback_handler.eval_dataloader = dataloader
        if not training:
            self._move_model_to_device(model, self.args.device)
        model.eval()
        with nullcontext() if training else self._free_prefix():
            if self.head is None:  # no training has come before
                self.settle_head()
            for batch in dataloader:
                inputs = self._prepare_inputs(batch)
                targets = inputs["labels"][0, 1:]
                terms = [Term(inputs["predictors"], CrossEntropy(targets), 1.0)]
                with self._forward(inputs) as call:
                    (loss,) = response_losses(model, call, terms, head=self.head, liger=True)
                losses, tokens = losses + loss.item(), tokens + len(targets)
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        mean = total(losses) / total(tokens)
        return EvalLoopOutput(predictions=None, label_ids=None, metrics={f"{metric_key_prefix}_loss": mean},
                              num_samples=len(dataloader.dataset))

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Run Trainer's `evaluate` on the rows that the trainer was made with, or on others of the same kinds."""
        if eval_dataset is None and self.eval_dataset is None:
            raise CofituneError("There are no rows to evaluate on; give CoFiTuneTrainer an eval_dataset.")
        if isinstance(eval_dataset, dict):
            raise CofituneError("eval_dataset is a dict; evaluate each data set by itself, with a metric_key_prefix.")
        metrics = super().evaluate(eval_dataset, *args, **kwargs)
        if eval_dataset is None:
            self.kept_eval_loss = metrics.get("eval_loss")
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        raise CofituneError(f"CoFiTuneTrainer does not predict: {NO_LOGITS}.")
