"""Mixin for any Trainer: checkpoints hold the trained region and no pickle."""

from __future__ import annotations

import secrets
from datetime import date
from functools import cached_property
from typing import Any

from ..errors import CofituneError
from ..regions import BaseInfo, Region
from ..training.saving import SavesDeltas
from .callback import CoFiTuneCallback


class DeltaCheckpoints(SavesDeltas):
    """Mixin that stands before transformers.Trainer, or a subclass such as TRL's, among a class's bases.

        class MyTrainer(DeltaCheckpoints, Trainer): ...

    The Trainer needs a CoFiTuneCallback, which knows region and base. A checkpoint folder then holds the delta, the
    optimizer in `optimizer.safetensors` and all other states as JSON, see `training.checkpoint`. `save_model` writes
    the delta. `resume_from_checkpoint=True` takes the last checkpoint that is whole, and the training goes on bit for
    bit. `load_best_model_at_end`, `save_total_limit` and `save_only_model` have Trainer's meaning; only checkpoints of
    this run count for the limit.

    Raises:
        CofituneError: there is no CoFiTuneCallback, or `push_to_hub` is set.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does; a checkpoint that is not whole is passed over (True) or refused (a path)."""
        if self.args.push_to_hub:
            raise CofituneError("args.push_to_hub is set, and checkpoints of deltas are not pushed; leave it out, and "
                                "upload the delta when it is done.")
        _ = self.region
        if not resume_from_checkpoint:
            self.run_name, self.began = secrets.token_hex(6), str(date.today())
        return super().train(resume_from_checkpoint, *args, **kwargs)

    @property
    def region(self) -> Region:
        return self._callback.region

    @property
    def base(self) -> BaseInfo:
        return self._callback.base

    @cached_property
    def run_name(self) -> str:
        return secrets.token_hex(6)

    @cached_property
    def began(self) -> str:
        return str(date.today())

    @property
    def _callback(self) -> CoFiTuneCallback:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, CoFiTuneCallback):
                return callback
        raise CofituneError("DeltaCheckpoints needs to know what is trained; give the Trainer "
                            "callbacks=[CoFiTuneCallback(region)].")
