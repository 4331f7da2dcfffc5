"""LoRA by PEFT on the live model, as a `Trainable`: the same trainer trains it on the same batches as a region."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import CofituneError
from ..models.adapter import require_peft
from ..models.fingerprint import named_parameters
from ..regions import Cell, Layout, Region, resolve_layout, whole_name
from .recipe import LoraSettings

_NAME = "default"


@dataclass(frozen=True)
class LoraAdapter:
    """LoRA adapters in float32 on the projections of `settings.region`; `seed` initialises the A matrices."""

    settings: LoraSettings
    seed: int = 0
    is_full = in_place = False

    @property
    def changes(self) -> Region:
        """Region of the projections with an adapter, which a merge changes."""
        return self.settings.region

    @property
    def cached_below(self) -> None:
        """Always None: adapters rename the projections, so a cache made with the base does not match."""

    def __str__(self) -> str:
        return f"lora r{self.settings.rank} alpha {self.settings.alpha:g} on {self.changes}"

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Attach adapters to the model; after the block its modules and tensors are the same objects as before."""
        peft, layout = require_peft("LoRA"), resolve_layout(model)
        config = peft.LoraConfig(
            r=self.settings.rank, lora_alpha=self.settings.alpha, lora_dropout=self.settings.dropout,
            target_modules=[name.removesuffix(".weight") for name in self._projections(layout)],
            fan_in_fan_out=all(isinstance(layout.module(cell), Conv1D) for cell in self.cells(layout)),
        )
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            tuner = peft.LoraModel(model, config, _NAME)
        # As in get_peft_model: in bfloat16 the adapters would round small steps away.
        peft.tuners.tuners_utils.cast_adapter_dtype(tuner, _NAME, autocast_adapter_dtype=True)
        model.eval()
        try:
            yield
        finally:
            tuner.unload()

    def cells(self, layout: Layout) -> list[Cell]:
        """Cells of the projections with an adapter.

        Raises:
            CofituneError: as `Region.cells`; a part of a fused projection, or a weight that is no projection by itself,
                such as that of experts.
        """
        cells = self.changes.cells(layout)
        if parts := self.changes.trained_parts(layout):
            raise CofituneError(
                f"LoRA cannot be put on a part of a projection, such as {parts[0]}; name all roles of "
                f"{whole_name(parts[0])} in lora.targets, or none of them."
            )
        for cell in cells:
            if not isinstance(layout.module(cell), nn.Linear | Conv1D):
                raise CofituneError(
                    f"LoRA cannot be put on {cell.parameter}, which is the weight of a "
                    f"{type(layout.module(cell)).__name__} and not of a linear layer; name other roles in "
                    "lora.targets, such as mha@all."
                )
        return cells

    def _projections(self, layout: Layout) -> dict[str, Cell]:
        """Name of a projection's weight -> one of its cells, each projection once."""
        return {cell.parameter: cell for cell in self.cells(layout)}

    def parameters(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """Return the (name, parameter) pairs of the adapters: A [rank, in] and B [out, rank] of each projection.

        A fused projection has one pair of matrices for all its roles.

        Raises:
            CofituneError: no adapters are attached.
        """
        pairs = [(name, parameter) for name, parameter in named_parameters(model) if ".lora_" in name]
        if not pairs:
            raise CofituneError("The model holds no LoRA adapters; train them inside `attached`.")
        return pairs

    def apply(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """Freeze everything but the adapters and return their (name, parameter) pairs."""
        pairs = self.parameters(model)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for _, parameter in pairs:
            parameter.requires_grad_(True)
        return pairs

    def count(self, model: nn.Module) -> int:
        """Count the numbers that the adapters hold, attached or not."""
        layout = resolve_layout(model)
        return sum(self.settings.rank * sum(layout.whole(cell).shape) for cell in self._projections(layout).values())

    @torch.no_grad()
    def endpoint(self, model: nn.Module) -> Callable[[str, Tensor], Tensor]:
        """Copy the trained adapters and return a function (name, base weight) -> merged weight.

        The merged weight is W + alpha / rank B A, float32 of the weight's shape [out, in], or [in, out] in GPT-2's
        Conv1D. Names are those of the model without adapters.
        """
        layout = resolve_layout(model)
        changes: dict[str, tuple[Tensor, Tensor, float]] = {}
        for name, cell in self._projections(layout).items():
            module: Any = layout.module_named(name.removesuffix(".base_layer.weight"))
            first, second = (matrices[_NAME].weight.detach().float().clone()
                             for matrices in (module.lora_A, module.lora_B))
            factors = (second, first) if cell.out == 0 else (first.T, second.T)
            changes[name.replace(".base_layer.", ".")] = *factors, module.scaling[_NAME]

        def merged(name: str, base: Tensor) -> Tensor:
            if name not in changes:  # a bias, which has no adapter
                return base.float()
            left, right, scaling = changes[name]
            return torch.addmm(base.float(), left, right, alpha=scaling)

        return merged
