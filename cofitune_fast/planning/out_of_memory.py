"""Advice for a run that is out of memory: its largest parts, and the setting that saves most."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..models.quantized import quantization
from ..regions import Region
from .planner import PARTS, Planner, Settings, fake_model


def is_out_of_memory(error: BaseException) -> bool:
    """True if an allocation on a device or the host failed. PyTorch's CPU allocator raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("DefaultCPUAllocator", "CUDA error: out of memory")))


def advice(model: nn.Module, region: Region, settings: Settings) -> str:
    """Two sentences: how much memory the run of `settings` needs, with its largest parts, and what would reduce it.

    The figures are predicted from the model's configuration (planner.py), for the longest rows.
    """
    planner = Planner(fake_model(model.config, model.dtype, roles=getattr(model, "cofitune_roles", None)), region)
    settings = replace(settings, quantize=quantization(model))
    plan = planner.plan(settings)
    largest = sorted(PARTS, key=lambda part: -plan.parts[part])[:3]
    parts = ", ".join(f"{part.replace('_', ' ')} {_gib(plan.parts[part])}" for part in largest)
    found = []
    for remedy, candidate in _remedies(settings):
        if (saved := plan.peak - planner.plan(candidate).peak) > 0:
            found.append((saved, remedy))
    if not found:
        return (f"This run needs about {_gib(plan.peak)}: {parts}. Train a smaller region, shorten data.max_length, or "
                "run `cofitune plan --fit SIZE`.")
    saved, remedy = max(found)
    return (f"This run needs about {_gib(plan.peak)}: {parts}. {remedy} would take it to {_gib(plan.peak - saved)}; "
            "`cofitune plan --fit SIZE` finds settings for a budget.")


def _remedies(settings: Settings) -> list[tuple[str, Settings]]:
    rows = max(1, settings.rows // 2)
    found = [
        (f"training.per_device_train_batch_size: {rows} with twice the gradient_accumulation_steps",
         replace(settings, accumulation=-(-settings.batch_size // rows), gradient_release="off")),
        ("training.gradient_checkpointing: true", replace(settings, gradient_checkpointing=True)),
        ("model.quantize: nf4", replace(settings, quantize="nf4")),
        ("memory.optimizer_states: host", replace(settings, optimizer_states="host", gradient_release="off")),
    ]
    return [(remedy, changed) for remedy, changed in found if changed != settings]


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
