"""The base as the reference of a preference loss: a copy of the region, and the model's own tensors for all else."""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..errors import CofituneError
from ..models.fingerprint import named_parameters
from ..models.sharded import is_sharded
from ..regions import Region, detach_parts, whole_name

_SHARING: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()  # names of the tensors that references share


def reference_model(model: nn.Module, region: Region | str) -> Any:
    """Copy the region's tensors of `model`, and return a model that has these and shares all others with `model`.

    The reference stays what `model` is now while the region is trained, as TRL's DPOTrainer wants it of its
    `ref_model`. It takes the memory of the region's weights and not of a second model. It is in evaluation mode, and
    none of its tensors requires a gradient.

    region: the region that will be trained, or its text. All other tensors of `model` are frozen here, as
        `Region.apply` does, because training one of them would change the reference too.

    The copy shares quantised weights too. Buffers of floating point are copied, as they may be statistics that a
    forward in training mode updates. A move of `model` to another device moves the shared tensors of both. TRL's
    `sync_ref_model` writes to all tensors of the reference, so it needs one that is loaded as a model of its own.

    Raises:
        CofituneError: a trainer has already prepared the model, several processes share its weights, or the region is
            not one of this model.
    """
    region = Region.parse(region)
    if is_sharded(model):
        raise CofituneError("A reference cannot share the weights of a model that several processes hold in parts; "
                            "load the reference as a model of its own.")
    if "forward" in vars(model) and not hasattr(model, "_hf_hook"):  # the hook of a device_map copies well
        raise CofituneError("The model's forward has been replaced, as a trainer does, and a copy of it would still "
                            "call this model; make the reference before the trainer.")
    trained = {whole_name(name) for name, _ in region.parameters(model)}
    shared: dict[int, Any] = {}  # deepcopy's memo: id -> what stands for that object in the copy
    for name, parameter in named_parameters(model):
        if name not in trained:
            parameter.requires_grad_(False)
            shared[id(parameter)] = parameter
    for buffer in model.buffers():
        if not buffer.is_floating_point():
            shared[id(buffer)] = buffer
    for state in _quantisation_states(model):
        shared[id(state)] = state
    reference = copy.deepcopy(model, shared)
    detach_parts(reference)
    _SHARING.setdefault(model, set()).update(name for name, _ in named_parameters(model) if name not in trained)
    return reference.requires_grad_(False).eval()


def shared_with_references(model: nn.Module) -> set[str]:
    """Return the names of the parameters that references made by `reference_model` hold too."""
    return _SHARING.get(model, set())


def _quantisation_states(model: nn.Module) -> list[Any]:
    """States of bitsandbytes' layers. They hold a quantised weight or its scales, and belong to the shared weight."""
    layers = [module for module in model.modules() if type(module).__module__.startswith("bitsandbytes")]
    held = [vars(layer).get(key) for layer in layers for key in ("state", "quant_state")]
    return [state for state in held if state is not None]
