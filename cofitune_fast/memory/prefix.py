"""The frozen prefix: the embeddings and the layers below the first trained one.

The prefix needs no graph and keeps no activations, also under gradient checkpointing. Its output states for a row never
change, so cached states can replace its layers. Both work through hooks on the input of the first trained layer. The
model's own forward still gets the tokens. So it makes masks, positions, rotary tables and embeddings per layer as ever.
`abilities` says for which models this is proven.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ..models.sharded import is_sharded
from ..regions import Region, resolve_layout


class FrozenPrefix:
    """Context in which the layers of `model` below `layer` run without a graph.

    layer: index of the first trained decoder layer. With 0 the prefix is the embeddings alone.
    width, dtype: of the states of one token at that layer's input.
    """

    def __init__(self, model: nn.Module, layer: int):
        layout = resolve_layout(model)
        layers = [layout.decoder_layer(index) for index in range(layout.num_layers)]
        inner = getattr(model, "module", model)
        self.layer = layer
        self.width: tuple[int, ...] = (layout.hidden_size,)
        self._embedding = inner.get_input_embeddings()
        self.dtype: torch.dtype = self._embedding.weight.dtype
        self._below, self._above, self._first = layers[:layer], layers[layer:], layers[layer]
        self._name = next(iter(signature(self._first.forward).parameters))
        decoder = inner.get_decoder()  # some families have their head there
        self._decoder = decoder if any(module is self._first for module in decoder.modules()) else inner
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

    @property
    def modules_above(self) -> list[nn.Module]:
        """Decoder layers from the first trained one up."""
        return list(self._above)

    def module_tree(self) -> list[nn.Module]:
        """All modules that can run before the first trained layer: those of the decoder without its upper layers."""
        above = {id(module) for layer in self._above for module in layer.modules()}
        return [module for module in self._decoder.modules() if id(module) not in above]

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
        states = inputs[0] if inputs else keywords[self._name]
        if self._wanted is not None:
            self._wanted.append(states)
            self._wanted = None  # in some releases a recomputed layer calls this hook a second time
        if self._stops:
            raise _Reached
        if self._states is not None:
            states = self._states
        return ((states, *inputs[1:]), keywords) if inputs else (inputs, {**keywords, self._name: states})

    def _end(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        torch.set_grad_enabled(self._outer_grad)

    @contextmanager
    def keeping(self) -> Iterator[list[Tensor]]:
        """Context that yields a list. The next forward appends the states at the first trained layer's input to it.

        The states are [batch, tokens, *width].
        """
        self._wanted = []
        kept = self._wanted
        try:
            yield kept
        finally:
            self._wanted = None

    @contextmanager
    def replaced_by(self, states: Tensor) -> Iterator[None]:
        """Context in which the next forward skips the prefix's layers, and `states` are the first trained one's input.

        states: [batch, tokens, *width]. They are kept until the next forward, as the backward may recompute the layer.
        """
        self._states, self._replacing = states, True
        # A sharded layer is skipped together with its hooks, as these would gather its weights.
        name = "_call_impl" if any(map(is_sharded, self._below)) else "forward"
        former = [layer.__dict__.get(name) for layer in self._below]
        for layer in self._below:
            setattr(layer, name, _Pass(_OUTPUTS.get(layer, 0)))
        try:
            yield
        finally:
            self._replacing = False
            for layer, method in zip(self._below, former, strict=True):
                if method is None:
                    delattr(layer, name)
                else:
                    setattr(layer, name, method)

    @torch.no_grad()
    def states(self, model: nn.Module, call: dict[str, Tensor]) -> Tensor:
        """Compute the states [batch, tokens, *width] at the first trained layer's input. The forward stops there."""
        self._stops = True
        try:
            with self.keeping() as kept:
                model(**call, use_cache=False)
        except _Reached:
            pass
        finally:
            self._stops = False
        return kept[0]

    def skipped(self) -> AbstractContextManager[None]:
        """Context in which the next forward, of one token, skips the prefix's layers; its logits mean nothing."""
        device = self._embedding.weight.device
        return self.replaced_by(torch.zeros(1, 1, *self.width, dtype=self.dtype, device=device))

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


_OUTPUTS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Number of a layer's outputs if they are a tuple, else 0."""


def learn_outputs(layer: nn.Module, output: Any) -> None:
    """Take note of the form of a layer's `output`, which a skipped layer has to have too."""
    _OUTPUTS[layer] = len(output) if isinstance(output, tuple) else 0


@dataclass(frozen=True)
class _Pass:
    """The forward of a skipped layer: it gives back its input, and None for each further output."""

    outputs: int

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        states = arguments[0] if arguments else next(iter(keywords.values()))
        return (states, *[None] * (self.outputs - 1)) if self.outputs else states


_RANDOM = ("dropout", "layerdrop", "drop_path", "jitter")
"""Parts of the names of attributes that make a module random in training."""


def randomness(model: nn.Module, prefix: FrozenPrefix) -> str | None:
    """Source of randomness in the prefix, in words; None if its states are the same every time."""
    return random_modules(prefix.module_tree())


def random_modules(modules: Iterable[nn.Module]) -> str | None:
    """Source of randomness in training in these modules, in words; None if there is none."""
    for module in modules:
        rates = {"dropout": module.p} if isinstance(module, _DropoutNd) else {
            name: value for name, value in vars(module).items()
            if any(word in name for word in _RANDOM) and isinstance(value, float)
        }
        for name, rate in rates.items():
            if rate > 0:
                return f"{name} {rate} in {type(module).__name__}"
    return None
