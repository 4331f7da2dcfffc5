"""LoRA by PEFT on the live model, as a `Trainable`: the same trainer trains it on the same batches as a region."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CofituneError
from ..models.fingerprint import named_parameters
from ..regions import Cell, Layout, Region, resolve_layout
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
        peft = require_peft()
        config = peft.LoraConfig(
            r=self.settings.rank, lora_alpha=self.settings.alpha, lora_dropout=self.settings.dropout,
            target_modules=self.changes.modules(model),
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
        return self.changes.cells(layout)

    def parameters(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """Return the (name, parameter) pairs of the adapters: A [rank, in] and B [out, rank] of each projection.

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
        return sum(self.settings.rank * sum(layout.parameter(cell).shape) for cell in self.cells(layout))

    @torch.no_grad()
    def endpoint(self, model: nn.Module) -> Callable[[str, Tensor], Tensor]:
        """Copy the trained adapters and return a function (name, base weight) -> merged weight.

        The merged weight is W + alpha / rank B A, float32 [out, in]. Names are those of the model without adapters.
        """
        layout = resolve_layout(model)
        factors: dict[str, tuple[Tensor, Tensor, float]] = {}
        for cell in self.cells(layout):
            module: Any = layout.module(cell.layer, cell.role)
            first, second = (matrices[_NAME].weight.detach().float().clone()
                             for matrices in (module.lora_A, module.lora_B))
            factors[cell.parameter.replace(".base_layer.", ".")] = first, second, module.scaling[_NAME]

        def merged(name: str, base: Tensor) -> Tensor:
            if name not in factors:  # a bias, which has no adapter
                return base.float()
            first, second, scaling = factors[name]
            return torch.addmm(base.float(), second, first, alpha=scaling)

        return merged


def require_peft() -> Any:
    try:
        import peft
    except ImportError:
        raise CofituneError("LoRA needs the package peft: pip install 'cofitune-fast[compare]'.") from None
    return peft
