"""Error message of a training that runs out of memory."""

from __future__ import annotations

from contextlib import suppress

import torch

from ..errors import CofituneError
from ..planning.out_of_memory import advice
from ..planning.planner import Settings
from .trainer import CoFiTuneTrainer


def out_of_memory(trainer: CoFiTuneTrainer) -> CofituneError:
    """Make the error of a training that ran out of memory, with the setting that saves most."""
    remedy = "Take a smaller training.per_device_train_batch_size with more gradient_accumulation_steps."
    if trainer.region.in_place:
        with suppress(CofituneError):  # a family that cannot be planned
            remedy = advice(trainer.model, trainer.region, _settings(trainer))
    return CofituneError(f"Out of memory at step {trainer.state.global_step + 1}. {remedy}")


def _settings(trainer: CoFiTuneTrainer) -> Settings:
    """Describe a run to the planner, by its longest rows."""
    arguments, data, memory = trainer.args, trainer.train_dataset, trainer.options.memory
    steps = arguments.gradient_accumulation_steps
    storages = {group["storage"] for group in trainer.optimizer.param_groups} if trainer.optimizer else {"auto"}
    storage = storages.pop()
    return Settings(
        batch_size=arguments.per_device_train_batch_size * steps, accumulation=steps,
        anchor_rows=data.anchor.settings.rows if data.anchor else 0,
        length=max(len(row.input_ids) for row in data.rows),
        response_length=max(len(row.input_ids) - row.response_start for row in data.rows),
        storage=storage if storage != "auto" else "fp32" if trainer.model.dtype == torch.float32 else "bf16_sr",
        masked=bool(trainer.options.masks), gradient_checkpointing=arguments.gradient_checkpointing,
        gradient_release=memory.gradient_release, optimizer_states=memory.optimizer_states,
        prefix="computed" if trainer.prefix_cache is None else "cached",
        prefix_weights=memory.prefix_weights if trainer.prefix_cache is not None else "device",
    )
