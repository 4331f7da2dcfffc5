"""Mixins of Trainers whose checkpoints hold the delta instead of the model, and no pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers.trainer_utils import SaveStrategy

from ..errors import CofituneError
from ..models.sharded import barrier, broadcast_object, total, world_size
from ..regions import BaseInfo, Trainable, load_delta, read_delta, save_delta
from .checkpoint import (
    Checkpoint,
    complete_checkpoint,
    find_checkpoint,
    load_training_state,
    remove_checkpoint,
    rotate,
    save_training_state,
    set_random_states,
)


class SavesDeltas:
    """Overrides Trainer's saving and loading; it stands before Trainer among a class's bases.

    What it needs to know comes from attributes of the Trainer.

    Attributes:
        region, base: what is trained, and of which base.
        run_name, began: see `Checkpoint.run` and `Checkpoint.began`.
    """

    region: Trainable
    base: BaseInfo
    run_name: str
    began: str

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as Trainer does; a checkpoint that is not whole is passed over (True) or refused (a path)."""
        if resume_from_checkpoint:
            resume_from_checkpoint = broadcast_object(find_checkpoint(resume_from_checkpoint, self.args.output_dir))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self._save(output_dir)  # on every rank, because each holds a part of the region

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        save_delta(self.model, self.region, Path(output_dir or self.args.output_dir), base=self.base)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint, complete once its description is written; then remove older ones of this run."""
        folder, args = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}", self.args
        if args.should_save:
            remove_checkpoint(folder)  # of an earlier run, or unfinished
        # Trainer would count by the files' times, other runs' checkpoints too, and remove that of a stopped run.
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            args.save_total_limit = limit
        about = {"step": self.state.global_step, "run": self.run_name, "began": self.began, **self._about()}
        if args.should_save:
            complete_checkpoint(folder, about)
            rotate(folder.parent, Checkpoint.read(folder), self._kept_checkpoints(), self.state.best_model_checkpoint)
        barrier()  # no rank goes on before the checkpoint is complete

    def _about(self) -> dict[str, Any]:
        """Return what a checkpoint's description says of the run: its identity and figures. Collective."""
        return {"identity": {}, "figures": {}, "temporary": False}

    def _kept_checkpoints(self) -> int | None:
        return self.args.save_total_limit

    def _resume(self, about: Checkpoint) -> None:
        """Go on from what a checkpoint's description says."""
        self.run_name, self.began = about.run, about.began

    @property
    def _stepper(self) -> Any:
        """The object that has the optimizer's state: the optimizer, without accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save_training_state(output_dir, self._stepper.state_dict(), self.lr_scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            optimizer, scheduler, _ = load_training_state(checkpoint)
            if (about := Checkpoint.read(checkpoint)) is not None:
                self._resume(about)
            self._stepper.load_state_dict(optimizer)
            self.lr_scheduler.load_state_dict(scheduler)

    def _save_rng_state(self, output_dir: str) -> None:
        pass  # save_training_state saves them

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_random_states(load_training_state(checkpoint)[2])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        info = read_delta(resume_from_checkpoint)
        if info.parameters.keys() != {name for name, _ in self.region.parameters(self.model)}:
            raise CofituneError(f"The checkpoint {resume_from_checkpoint} is of the region {info.region}, and "
                                f"{self.region} is trained; resume with the same region, or start anew.")
        load_delta(self.model, resume_from_checkpoint, base_fingerprint=self.base.fingerprint)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)


class SavesRuns(SavesDeltas):
    """Checkpoints of CoFiTuneTrainer: with identity and figures of the run, and some by time or by a signal."""

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        asked = self.control.should_save
        super()._maybe_log_save_evaluate(*args, **kwargs)
        # With save_strategy "best" an evaluation overrules a checkpoint that time or a signal asked for.
        if asked and self._saved_step != self.state.global_step:
            self._save_checkpoint(self.model, None)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint that can be resumed from where it is a temporary one."""
        args = self.args
        alone, args.save_only_model = args.save_only_model, args.save_only_model and not self._temporary
        try:
            super()._save_checkpoint(model, trial)
        finally:
            args.save_only_model = alone
        self._saved_step = self.state.global_step

    @property
    def _temporary(self) -> bool:
        best = self.args.save_strategy == SaveStrategy.BEST and self.state.best_global_step == self.state.global_step
        return self.saves is not None and not (self.saves.asked or best)

    def _about(self) -> dict[str, Any]:
        figures = self.figures.state()
        figures["loss"][0] = total(figures["loss"][0]) / world_size()
        return {"identity": self.identity, "figures": figures, "temporary": self._temporary}

    def _kept_checkpoints(self) -> int | None:
        return self.checkpoint_limit

    def _resume(self, about: Checkpoint) -> None:
        super()._resume(about)
        self.figures.load(about.figures)

    @property
    def _stepper(self) -> Any:
        return self.release or super()._stepper

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.kept_eval_loss = next((entry["eval_loss"] for entry in self.state.log_history
                                    if entry["step"] == self.state.best_global_step and "eval_loss" in entry), None)
