"""The frozen prefix: the embeddings and the layers below the first trained one.

The prefix needs no graph and keeps no activations, also under gradient checkpointing. Its output states for a row never
change, so cached states can replace it. Both work through hooks on the input of the first trained layer. The model's
own forward still makes masks, positions and rotary tables, so every family known to the layout resolver works.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..models.sharded import is_sharded
from ..regions import Region, resolve_layout


class FrozenPrefix:
    """Context in which the layers of `model` below `layer` run without a graph.

    layer: index of the first trained decoder layer. With 0 the prefix is the embeddings alone.
    """

    def __init__(self, model: nn.Module, layer: int):
        layout = resolve_layout(model)
        self.layer = layer
        self._decoder = getattr(model, "module", model).get_decoder()
        self._below = [layout.decoder_layer(index) for index in range(layer)]
        self._first = layout.decoder_layer(layer)
        self._handles: list[Any] = []
        self._checkpointed: list[nn.Module] = []
        self._outer_grad = True
        self._states: Tensor | None = None
        self._replacing = False
        self._wanted: list[Tensor] | None = None
        self._stops = False
        self._parked: dict[nn.Parameter, torch.device] = {}

    @classmethod
    def of(cls, model: nn.Module, region: Region) -> FrozenPrefix | None:
        """Prefix of `region` in `model`; None if the embeddings are trained too."""
        if region.is_full:
            return None
        return cls(model, min(cell.layer for cell in region.cells(resolve_layout(model))))

    @property
    def modules(self) -> list[nn.Module]:
        """Decoder layers of the prefix."""
        return list(self._below)

    def __enter__(self) -> FrozenPrefix:
        self.stop_checkpointing()
        self._handles = [
            self._decoder.register_forward_pre_hook(self._begin),
            self._first.register_forward_pre_hook(self._reach, with_kwargs=True),
            self._decoder.register_forward_hook(self._end, always_call=True),
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        for layer in self._checkpointed:
            layer.gradient_checkpointing = True
        self._handles, self._checkpointed, self._states = [], [], None

    def stop_checkpointing(self) -> None:
        """Take gradient checkpointing off the prefix's layers until the context ends."""
        for layer in self._below:
            if getattr(layer, "gradient_checkpointing", False):
                layer.gradient_checkpointing = False
                self._checkpointed.append(layer)

    def _begin(self, module: nn.Module, inputs: tuple) -> None:
        self._outer_grad = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        if not self._replacing:
            self._states = None

    def _reach(self, module: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        torch.set_grad_enabled(self._outer_grad)
        states = inputs[0] if inputs else keywords["hidden_states"]
        if self._wanted is not None:
            self._wanted.append(states)
            self._wanted = None  # in some releases a recomputed layer calls this hook a second time
        if self._stops:
            raise _Reached
        if self._states is not None:
            states = self._states
        return ((states, *inputs[1:]), keywords) if inputs else (inputs, {**keywords, "hidden_states": states})

    def _end(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        torch.set_grad_enabled(self._outer_grad)

    @contextmanager
    def keeping(self) -> Iterator[list[Tensor]]:
        """Context that yields a list. The next forward appends the states at the first trained layer's input to it.

        The states are [batch, tokens, hidden].
        """
        self._wanted = []
        kept = self._wanted
        try:
            yield kept
        finally:
            self._wanted = None

    @contextmanager
    def replaced_by(self, states: Tensor) -> Iterator[dict[str, Tensor]]:
        """Context in which the next forward starts at the first trained layer, with `states` as the layer's input.

        states: [batch, tokens, hidden]. They are kept until the next forward, as the backward may recompute the layer.
        Yields the arguments that replace `input_ids` in the model's forward.
        """
        self._states, self._replacing = states, True
        # A sharded layer is skipped together with its hooks, as these would gather its weights.
        name = "_call_impl" if any(map(is_sharded, self._below)) else "forward"
        former = [layer.__dict__.get(name) for layer in self._below]
        for layer in self._below:
            setattr(layer, name, _pass)
        try:
            yield {"inputs_embeds": states}
        finally:
            self._replacing = False
            for layer, method in zip(self._below, former, strict=True):
                if method is None:
                    delattr(layer, name)
                else:
                    setattr(layer, name, method)

    @torch.no_grad()
    def states(self, model: nn.Module, call: dict[str, Tensor]) -> Tensor:
        """Compute the states [batch, tokens, hidden] at the first trained layer's input. The forward stops there."""
        self._stops = True
        try:
            with self.keeping() as kept:
                model(**call, use_cache=False)
        except _Reached:
            pass
        finally:
            self._stops = False
        return kept[0]

    def park(self) -> None:
        """Move the weights of the prefix's layers to the host. Until `bring_back` only `replaced_by` works."""
        for parameter in (parameter for layer in self._below for parameter in layer.parameters()):
            self._parked[parameter] = parameter.device
            parameter.data = parameter.data.to("cpu")

    def bring_back(self) -> None:
        for parameter, device in self._parked.items():
            parameter.data = parameter.data.to(device)
        self._parked = {}


class _Reached(Exception):
    """Signal that the forward has reached the first trained layer and can stop."""


def _pass(hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
    return hidden_states


def randomness(model: nn.Module, prefix: FrozenPrefix) -> str | None:
    """Source of randomness in the prefix, in words; None if its states are the same every time."""
    inside = [module for layer in prefix.modules for module in layer.modules()]
    for module in (*inside, getattr(model, "module", model).get_input_embeddings()):
        rates = {"dropout": module.p} if isinstance(module, nn.Dropout) else {
            name: value for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)
        }
        for name, rate in rates.items():
            if rate > 0:
                return f"{name} {rate} in {type(module).__name__}"
    return None
