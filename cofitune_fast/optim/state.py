"""States of MaskedAdamW: make new ones, and restore saved ones bit for bit, or refuse with the parameter's name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops._checks import plain, require
from ..ops._storage import new_state
from .arguments import NAME, is_number, state_key
from .sharding import check_like, distributed, like, local

_NUMBERS = ("step", "storage")


def new(p: Tensor, storage: str) -> dict[str, Any]:
    """Make a new state: "step" 0, "storage", and the tensors of `ops._storage.new_state`; DTensors if p is one."""
    part = local(p.detach())
    shapes = {key: tensor.shape for key, tensor in new_state(torch.empty(p.shape, device="meta"), storage).items()}
    tensors = new_state(part, storage)
    return {"step": 0, "storage": storage, **{key: distributed(tensors[key], p, shapes[key]) for key in tensors}}


def options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a parameter group for saving, with the keys of its states in place of parameters.

    Names are also saved beside them, because torch.distributed.checkpoint puts numbers in their place.
    """
    names = group["param_names"]
    kept = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    saved = {**kept, "params": list(map(state_key, names))}
    return saved if any(map(is_number, names)) else {**saved, "param_names": list(names)}


def by_name(state_dict: Mapping[str, Any], own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Key the states of a state dict by this optimizer's names of their parameters; returns name -> state.

    Saved names are looked up. Where parameters of the saved run or of this one have none, they belong together by their
    order in the groups, as in torch's optimizers.

    own: this optimizer's groups.
    """
    saved = state_dict["param_groups"]
    require(len(saved) == len(own),
            f"{NAME}: the state has {len(saved)} parameter groups, but this optimizer has {len(own)}.")
    names: dict[str, str] = {}  # torch.distributed.checkpoint returns some numbers as text
    for theirs, ours in zip(saved, own, strict=True):
        keys, known = theirs["params"], ours["param_names"]
        named = keys if _are_names(keys) else theirs.get("param_names", keys)
        if any(map(is_number, known)) or not _are_names(named):
            require(len(keys) == len(known), f"{NAME}: the state belongs to {len(keys)} parameters without names, but "
                    f"this optimizer has {len(known)} in their place.")
            named = known
        missing, foreign = sorted(set(known) - set(named)), sorted(set(named) - set(known))
        require(
            not (missing or foreign),
            f"{NAME}: the state belongs to other parameters (it lacks: {', '.join(missing) or 'none'}; it has "
            f"besides: {', '.join(foreign) or 'none'}).",
        )
        names.update(zip(map(str, keys), named, strict=True))
    unknown = sorted({str(key) for key in state_dict["state"]} - set(names))
    require(not unknown, f"{NAME}: the state of {', '.join(unknown)} belongs to no parameter of this optimizer.")
    return {names[str(key)]: state for key, state in state_dict["state"].items()}


def _are_names(keys: Iterable[Any]) -> bool:
    return all(isinstance(key, str) for key in keys)


def check_entry(name: str, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse the saved state of one parameter unless it can be copied to `own` without changing a bit."""
    require("storage" in saved, f"{NAME}: the state of {name} is another optimizer's, for it names no storage; begin "
            "with new states instead.")
    require("step" in saved, f"{NAME}: step of {name} is missing in the state.")
    require(
        saved["storage"] == own["storage"],
        f"{NAME}: the state of {name} is stored as {saved['storage']!r}, but this optimizer stores it as "
        f"{own['storage']!r}; resume with the storage and dtype of the saved run.",
    )
    for key, ours in own.items():
        if key in _NUMBERS:
            continue
        theirs = saved.get(key)
        require(isinstance(theirs, Tensor) and theirs.shape == ours.shape and theirs.dtype == ours.dtype,
                f"{NAME}: {key} of {name} is missing in the state or not {plain(ours.dtype)} of shape "
                f"{list(ours.shape)}.")
        check_like(NAME, f"{key} of {name}", theirs, ours)
    besides = sorted(set(saved) - set(own))
    require(not besides, f"{NAME}: the state of {name} has {', '.join(besides)}, which this optimizer does not keep; "
            "give it the same pull as the saved run.")


def check_steps(batches: Iterable[Sequence[str]], saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse states with different steps in a batch: with capturable=True its parameters share one count."""
    for first, *others in batches:
        steps = {name: int(saved[name]["step"]) if name in saved else 0 for name in (first, *others)}
        for name in others:
            require(steps[name] == steps[first],
                    f"{NAME}: the state of {first} is at step {steps[first]} and that of {name} at step {steps[name]}, "
                    "but with capturable=True they are counted together.")


def fill(own: dict[str, Any], anchor: Tensor | None, saved: Mapping[str, Any] | None) -> None:
    """Copy a saved state, or zeros for None, into the own tensors, as compiled steps and graphs refer to these."""
    step = 0 if saved is None else int(saved["step"])
    own["step"] = own["step"].fill_(step) if isinstance(own["step"], Tensor) else step
    for key, ours in own.items():
        if key not in _NUMBERS:
            local(ours).copy_(torch.zeros(()) if saved is None else local(like(saved[key], ours)))
    if anchor is not None and saved is not None:
        local(anchor).copy_(local(like(saved["anchor"], anchor)))


def take_options(group: dict[str, Any], saved: Mapping[str, Any]) -> None:
    """Copy the options of the saved group, except its storage. An lr that is a tensor is filled in place."""
    for key, value in saved.items():
        if key in ("params", "param_names", "storage"):
            continue
        value = value.item() if isinstance(value, Tensor) else value
        if isinstance(group.get(key), Tensor):
            group[key].fill_(value)
        else:
            group[key] = tuple(value) if key == "betas" else value
