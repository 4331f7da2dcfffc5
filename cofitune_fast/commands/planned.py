"""Plans of a configuration's training: its storage and settings, and the memory of any region under them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..config import Config
from ..errors import CofituneError
from ..memory.abilities import prefix_abilities
from ..models.auto import read_config
from ..models.loading import default_device, plain_folder
from ..planning.plan import Settings
from ..planning.planner import Planner, fake_model
from ..regions import Region
from ..training.argument_rules import DEFAULTS


def memory_needs(settings: Config) -> Callable[[Region], int]:
    """Return a function that predicts the bytes that training a region with the settings of a run needs here."""
    folder = plain_folder(settings.model.path, settings.model.gguf_file)
    storage = planned_storage(settings, folder)
    dtype = torch.float32 if storage == "fp32" else torch.bfloat16
    model = fake_model(folder, dtype, settings.model.attn_implementation, settings.model.roles)

    def need(region: Region) -> int:
        planner = Planner(model, region)
        wanted = planned_settings(settings, planner, storage)
        return planner.plan(replace(wanted, own_memory=not _is_cpu(settings.model.device or default_device()))).need

    return need


def planned_storage(settings: Config, folder: str | Path) -> str:
    """Return the storage of a run: the configured one, or that of the dtype that the model is loaded in."""
    if settings.storage != "auto":
        return settings.storage
    dtype = settings.model.dtype
    if dtype == "auto":  # as the model is loaded: in the dtype of its own configuration
        config = read_config(folder)
        dtype = str(getattr(config.get_text_config(), "dtype", None) or config.dtype).removeprefix("torch.")
    return "fp32" if dtype == "float32" else "bf16_sr"


def planned_settings(settings: Config, planner: Planner, storage: str) -> Settings:
    training, memory = settings.training, settings.memory
    rows, micro_batches = (_count(training, key) for key in (
        "per_device_train_batch_size", "gradient_accumulation_steps"))
    below = planner.prefix_layers
    cached = memory.prefix_cache == "auto" and below > 0 and bool(prefix_abilities(planner.model, below).cache)
    if memory.gradient_release != "off" and (micro_batches > 1 or memory.optimizer_states == "host"):
        raise CofituneError(
            "memory.gradient_release goes neither with training.gradient_accumulation_steps above 1 nor with "
            "memory.optimizer_states: host, which frees gradients by itself; leave one of them out."
        )
    length = settings.data.max_length
    return Settings(
        batch_size=rows * micro_batches, accumulation=micro_batches, length=length,
        anchor_rows=settings.anchor.rows if settings.anchor.weight else 0,
        response_length=min(settings.plan.response_length or length // 2, length - 1), storage=storage,
        masked=settings.mask.preset != "none" and not planner.region.is_full,
        gradient_checkpointing=bool(training.get("gradient_checkpointing", False)),
        gradient_release=memory.gradient_release, optimizer_states=memory.optimizer_states,
        quantize=settings.model.quantize, prefix="cached" if cached else "computed",
        prefix_weights=memory.prefix_weights if cached else "device",
        own_memory=not _is_cpu(settings.model.device),  # without one the plan is for a card, which need not be here
    )


def _is_cpu(device: Any) -> bool:
    return str(device).startswith("cpu")


def _count(training: dict[str, Any], key: str) -> int:
    value = training.get(key, DEFAULTS.get(key, 1))
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CofituneError(f"training.{key} is {value!r}; it must be a whole number of at least 1.")
    return value
