"""Train a part of a tensor: a parameter of its own that shares the part's storage.

A region may cover the keys of a fused query-key-value projection and nothing else of it. The rest of the tensor should
then cost no gradient and no optimizer state. `attach` puts a parameter into the model that is a view of the part, and
lets the module read its weight through a function whose backward hands the part's gradient to that parameter. The
tensor itself keeps its name and its place, so `state_dict` and `save_pretrained` see what they always saw.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ..models.fingerprint import PARTS, normalize_name
from .cells import Part


class _Parts(nn.Module):
    """Parameters that are parts of the tensors of the module they are put in. They are in no state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, list[tuple[Part, str]]] = {}  # tensor -> (part, name of the parameter)

    def _save_to_state_dict(self, *arguments: Any) -> None:
        pass

    def _load_from_state_dict(self, *arguments: Any) -> None:
        pass

    def trained(self, key: str, whole: Tensor) -> list[tuple[Part, nn.Parameter]]:
        found = []
        for part, name in self.places[key]:
            leaf: Any = self._parameters[name]
            view = part.of(whole.detach())
            moved = (leaf.device, leaf.dtype) != (view.device, view.dtype)
            # A move of the model to another device or dtype moves the two apart. Fake tensors have no address.
            if moved or (not isinstance(view, FakeTensor) and leaf.data_ptr() != view.data_ptr()):
                leaf.data = view
            found.append((part, leaf))
        return found


class _Read(torch.autograd.Function):
    """Reads a tensor as it is. The backward gives each parameter the gradient of its part of the tensor."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, parts: tuple[Part, ...], *leaves: Tensor) -> Tensor:
        ctx.parts = parts
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # A view would keep the gradient of the whole tensor alive.
        return None, None, *(part.of(grad).clone(memory_format=torch.contiguous_format) for part in ctx.parts)


def attach(module: nn.Module, key: str, parts: Iterable[tuple[Part, str]]) -> list[nn.Parameter]:
    """Put a parameter for each part of the tensor `key` into `module`. parts: (part, role), none overlapping.

    The parameters have the shape of `Part.of` and share the tensor's storage, so a step on them is a step on it.
    """
    whole: Any = module._parameters[key]
    if PARTS not in module._modules:
        module.add_module(PARTS, _Parts())
        _read_through(module)
    holder: Any = module._modules[PARTS]
    leaves = []
    for part, role in parts:
        leaf = nn.Parameter(part.of(whole.detach()))
        name = f"{key}[{role.replace('.', ':')}]"  # names of parameters take no dot
        holder.register_parameter(name, leaf)
        holder.places.setdefault(key, []).append((part, name))
        leaves.append(leaf)
    return leaves


def detach(model: nn.Module) -> None:
    """Take away all parameters that `attach` has put into `model`."""
    for module in model.modules():
        if PARTS in module._modules:
            del module._modules[PARTS]
            module.__class__ = type(module).__mro__[1]


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """(name, parameter) pairs of all that requires a gradient, with the names that `Region.apply` gives."""
    found = ((normalize_name(name), parameter) for name, parameter in model.named_parameters()
             if parameter.requires_grad)
    return [(name.replace(f"{PARTS}.", "").replace(":", ".") if f"{PARTS}." in name else name, parameter)
            for name, parameter in found]


def attached(module: nn.Module, key: str, role: str) -> nn.Parameter | None:
    """The parameter of a role's part of a tensor; None if it is not attached."""
    holder: Any = module._modules.get(PARTS)
    return None if holder is None else holder._parameters.get(f"{key}[{role.replace('.', ':')}]")


def _read_through(module: nn.Module) -> None:
    """Give `module` a class of its own, in which tensors with trained parts are read by `_Read`."""
    former = type(module)

    def read(self: Any, name: str) -> Any:
        parameters = self.__dict__["_parameters"]
        if name in parameters:
            holder = self.__dict__["_modules"].get(PARTS)
            if holder is not None and name in holder.places and torch.is_grad_enabled():
                whole = parameters[name]
                trained = holder.trained(name, whole)
                return _Read.apply(whole, tuple(part for part, _ in trained), *(leaf for _, leaf in trained))
        return former.__getattr__(self, name)

    module.__class__ = type(former.__name__, (former,), {"__getattr__": read, "__module__": former.__module__})
