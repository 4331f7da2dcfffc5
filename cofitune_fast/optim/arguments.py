"""Arguments of MaskedAdamW: options, parameters and tensors by name. They are checked once, with the name in errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops._adamw_call import MASK_MODES
from ..ops._checks import layout, plain, require
from ..ops._storage import STORAGES
from .pull import Pull
from .sharding import check_like, check_placement, like, local

NAME = "MaskedAdamW"
_WEIGHTS = {form.weight for form in STORAGES.values()}


def check_options(group: Mapping[str, Any]) -> None:
    require(len(group["betas"]) == 2 and all(0 <= beta < 1 for beta in group["betas"]),
            f"{NAME}: betas must lie in [0, 1), two of them, but they are {tuple(group['betas'])}.")
    lr = group["lr"]
    require(not isinstance(lr, Tensor) or lr.numel() == 1,
            f"{NAME}: lr must be a number or a tensor of one element, but it has {getattr(lr, 'shape', None)}.")
    for key in ("lr", "eps", "weight_decay"):
        require(bool(group[key] >= 0), f"{NAME}: {key} must not be negative, but it is {group[key]}.")
    require(group["mask_mode"] in MASK_MODES,
            f"{NAME}: mask_mode must be 'update' or 'gradient', not {group['mask_mode']!r}.")
    require(group["storage"] in ("auto", *STORAGES),
            f"{NAME}: storage must be one of {', '.join(('auto', *STORAGES))}, not {group['storage']!r}.")


def given_parameters(params: Any) -> list[Any]:
    """List what was given as `params`: parameters or groups, at least one."""
    require(not isinstance(params, nn.Module),
            f"{NAME}: parameters are needed, not a {type(params).__name__}; cofitune_fast.apply(model, region) freezes "
            "all but a region and returns its parameters, and model.parameters() has all.")
    require(isinstance(params, Iterable) and not isinstance(params, (Tensor, str, Mapping)),
            f"{NAME}: parameters or groups of them must come in a list or another iterable, not in a "
            f"{type(params).__name__}.")
    listed = list(params)
    require(bool(listed), f"{NAME}: there are no parameters to train; a region that selects some is needed.")
    return listed


def named_pairs(group: Mapping[str, Any], others: Iterable[str]) -> list[tuple[str, Tensor]]:
    """Read the parameters under "params" of a given group: one tensor, tensors, or (name, tensor) pairs.

    Tensors without names are called by their number, which goes on from the others: "parameter 0", "parameter 1", ...

    others: names of the parameters of the groups before.
    """
    given, others = group["params"], list(others)
    require(not isinstance(given, (set, frozenset)), f"{NAME}: a set of parameters has no order; give a list.")
    given = list(given) if isinstance(given, Iterable) and not isinstance(given, Tensor) else [given]
    if "param_names" in group and all(isinstance(one, Tensor) for one in given):  # a group of another optimizer
        given = list(zip(group["param_names"], given, strict=True))
    strange = [repr(one) if isinstance(one, str) else f"a {type(one).__name__}"
               for one in given if not (isinstance(one, Tensor) or _is_pair(one))]
    require(not strange, f"{NAME}: parameters must come as tensors or (name, tensor) pairs, as cofitune_fast.apply and "
            f"named_parameters give them, but there is {''.join(strange[:1])}.")
    pairs = [(f"parameter {len(others) + index}", one) if isinstance(one, Tensor) else one
             for index, one in enumerate(given)]
    require(len({is_number(name) for name in (*others, *(name for name, _ in pairs))}) < 2,
            f"{NAME}: some parameters come with a name and others without; give names to all or none of them.")
    return pairs


def check_once(pairs: Sequence[tuple[str, Tensor]], others: Mapping[str, Tensor]) -> None:
    """Refuse a parameter or a name that is given twice. others: name -> parameter of the groups before."""
    names, tensors = dict.fromkeys(others), {p: name for name, p in others.items()}
    for name, p in pairs:
        require(p not in tensors, f"{NAME}: {name} is given twice" +
                (f", the first time as {tensors.get(p)}." if tensors.get(p) != name else "."))
        require(name not in names, f"{NAME}: two parameters are named {name}; name them as in the whole model, as "
                "named_parameters(prefix=...) of a part of it does.")
        names[name], tensors[p] = None, name


def is_number(name: str) -> bool:
    """True for the name of a parameter that was given without one."""
    return re.fullmatch(r"parameter (0|[1-9]\d*)", name) is not None


def state_key(name: str) -> str | int:
    """Key of a parameter in a state dict: its name, or without one its number, as in torch's optimizers."""
    return int(name.removeprefix("parameter ")) if is_number(name) else name


def _is_pair(one: Any) -> bool:
    return isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str) and isinstance(one[1], Tensor)


def resolved_storage(name: str, p: Tensor, storage: str) -> str:
    """Resolve the storage of one parameter; "auto" depends on its dtype.

    Raises:
        CofituneError: the storage does not fit the parameter, or the parameter cannot be trained.
    """
    require(
        p.dtype in _WEIGHTS,
        f"{NAME}: {name} is {plain(p.dtype)}, which cannot be trained here; load the model in bfloat16 or float32.",
    )
    if storage == "auto":
        storage = "fp32" if p.dtype == torch.float32 else "bf16_sr"
    require(
        STORAGES[storage].weight == p.dtype,
        f"{NAME}: storage {storage!r} does not fit {name}, which is {plain(p.dtype)}; use storage='auto'.",
    )
    require(all(stride or size <= 1 for size, stride in zip(p.shape, p.stride(), strict=True)),
            f"{NAME}: several elements of {name} share memory (it is an expanded tensor); clone it before training.")
    check_placement(NAME, name, p, storage)
    return storage


class Factors(NamedTuple):
    """Mask, anchor and strengths of the pull of one parameter, on its device and placed like it; None: it has none."""

    mask: Tensor | None = None
    anchor: Tensor | None = None
    pull: Tensor | None = None

    def like(self, p: Tensor) -> Factors:
        """Move or distribute the factors like p."""
        return Factors(*(factors if factors is None else like(factors, p) for factors in self))


@dataclass(frozen=True)
class Given:
    """Masks and pull as given to the constructor of MaskedAdamW."""

    masks: Mapping[str, Tensor]
    pull: Pull | None

    def check_names(self, known: Iterable[str]) -> None:
        unknown = sorted(set(self.masks) - set(known))
        require(not unknown,
                f"{NAME}: there are masks for {', '.join(unknown)}, which this optimizer does not train.")
        if self.pull is not None:
            self.pull.check_names(known)

    def of(self, name: str, p: Tensor) -> Factors:
        """Check and prepare the factors of one parameter. Call it without grad mode."""
        mask = self.masks.get(name)
        mask = None if mask is None else _mask(name, mask, p)
        if self.pull is None or not self.pull.pulls(name):
            return Factors(mask)
        if self.pull.initial is None:
            anchor = p.detach().clone()
        else:
            require(name in self.pull.initial,
                    f"{NAME}: the pull's initial weights lack {name}; add it, or name in units those that are pulled.")
            anchor = _anchor(name, self.pull.initial[name], p)
        units = torch.ones(()) if self.pull.units is None else self.pull.units[name]
        return Factors(mask, anchor, _strengths(name, units, self.pull.strength, p))


def _mask(name: str, mask: Tensor, p: Tensor) -> Tensor:
    label = f"the mask of {name}"
    require(mask.dtype == torch.uint8 or mask.is_floating_point(),
            f"{NAME}: {label} must be float32, or uint8 in units of 1/255, but it is {plain(mask.dtype)}.")
    mask = _broadcasting(label, mask, p, keep=torch.uint8)
    low, high = _range(mask)
    require(low >= 0 and (mask.dtype == torch.uint8 or high <= 1), f"{NAME}: {label} has values outside [0, 1].")
    return like(mask, p)


def _strengths(name: str, units: Tensor, strength: float, p: Tensor) -> Tensor:
    label = f"the pull of {name}"
    strengths = _broadcasting(label, torch.as_tensor(units), p) * strength
    low, high = _range(strengths)
    require(low >= 0 and high < float("inf"), f"{NAME}: {label} must be finite and not negative.")
    return like(strengths, p)


def _anchor(name: str, anchor: Tensor, p: Tensor) -> Tensor:
    label = f"the initial weight of {name}"
    require(anchor.dtype == p.dtype and anchor.shape == p.shape,
            f"{NAME}: {label} must be {plain(p.dtype)} of shape {list(p.shape)} like its parameter, but it is "
            f"{plain(anchor.dtype)} of shape {list(anchor.shape)}.")
    check_like(NAME, label, anchor, p)
    anchor = like(anchor.detach().contiguous(), p)
    require(local(anchor).data_ptr() != local(p).data_ptr() or not local(p).numel(),
            f"{NAME}: {label} is the parameter itself; pass a copy, or leave `initial` out.")
    return anchor


def _broadcasting(label: str, factors: Tensor, p: Tensor, keep: torch.dtype = torch.float32) -> Tensor:
    layout(NAME, label, factors, p.shape)
    check_like(NAME, label, factors, p)
    return factors.detach().to(factors.dtype if factors.dtype == keep else torch.float32).contiguous()


def _range(factors: Tensor) -> tuple[float, float]:
    """Smallest and largest value on this rank; NaN if there is one."""
    values = local(factors)
    return tuple(x.item() for x in torch.aminmax(values)) if values.numel() else (0.0, 0.0)
