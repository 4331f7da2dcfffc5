"""Mixin of CoFiTuneTrainer: its checkpoints, which hold the delta instead of the model, and no pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers.trainer_utils import SaveStrategy

from ..models.sharded import barrier, total, world_size
from ..regions import load_delta, save_delta
from .checkpoint import (
    Checkpoint,
    complete_checkpoint,
    load_training_state,
    remove_checkpoint,
    rotate,
    save_training_state,
    set_random_states,
)


class SavesDeltas:
    """Overrides Trainer's saving and loading; it stands before Trainer among a class's bases."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self._save(output_dir)  # on every rank, because each holds a part of the region

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        save_delta(self.model, self.region, Path(output_dir or self.args.output_dir), base=self.base)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        asked = self.control.should_save
        super()._maybe_log_save_evaluate(*args, **kwargs)
        # With save_strategy "best" an evaluation overrules a checkpoint that time or a signal asked for.
        if asked and self._saved_step != self.state.global_step:
            self._save_checkpoint(self.model, None)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint, complete once its description is written; then remove older ones."""
        step, args = self.state.global_step, self.args
        folder = Path(args.output_dir) / f"checkpoint-{step}"
        best = args.save_strategy == SaveStrategy.BEST and self.state.best_global_step == step
        temporary = self.saves is not None and not (self.saves.asked or best)
        if args.should_save:
            remove_checkpoint(folder)  # of an earlier run, or unfinished
        alone, args.save_only_model = args.save_only_model, args.save_only_model and not temporary
        try:
            super()._save_checkpoint(model, trial)
        finally:
            args.save_only_model = alone
        figures = self.figures.state()
        figures["loss"][0] = total(figures["loss"][0]) / world_size()
        if args.should_save:
            complete_checkpoint(folder, {
                "step": step, "run": self.run_name, "identity": self.identity, "figures": figures,
                "temporary": temporary, "began": self.began,
            })
            rotate(folder.parent, Checkpoint.read(folder), self.checkpoint_limit, self.state.best_model_checkpoint)
        self._saved_step = step
        barrier()  # no rank goes on before the checkpoint is complete

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        optimizer = (self.release or self._masked_adamw).state_dict()
        save_training_state(output_dir, optimizer, self.lr_scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            optimizer, scheduler, _ = load_training_state(checkpoint)
            if (about := Checkpoint.read(checkpoint)) is not None:
                self.figures.load(about.figures)
                self.run_name, self.began = about.run, about.began
            (self.release or self._masked_adamw).load_state_dict(optimizer)
            self.lr_scheduler.load_state_dict(scheduler)

    def _save_rng_state(self, output_dir: str) -> None:
        pass  # save_training_state saves them

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_random_states(load_training_state(checkpoint)[2])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_delta(self.model, resume_from_checkpoint, base_fingerprint=self.base.fingerprint)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)
        self.kept_eval_loss = next((entry["eval_loss"] for entry in self.state.log_history
                                    if entry["step"] == self.state.best_global_step and "eval_loss" in entry), None)
