"""Proof that training changed no byte outside the region."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from ..errors import CofituneError
from ..models.fingerprint import digest_all, named_tensors, tensor_digest
from .cells import Part, whole_name
from .layout import resolve_layout


class FrozenSummary(NamedTuple):
    """Number of tensors, and their bytes, that were proven unchanged."""

    tensors: int
    bytes: int


@dataclass(frozen=True)
class FrozenProof:
    """Digests of all parameters and persistent buffers that are not trained, taken before training.

    A quantised weight counts with its packed bytes, its scales and its codes.
    """

    trained: frozenset[str]
    digests: dict[str, str]

    @classmethod
    def of(cls, model: nn.Module, trained_names: Iterable[str]) -> FrozenProof:
        """Record the frozen part of `model`. trained_names: as Region.apply returns them.

        Raises:
            CofituneError: a trained name is not a tensor of the model.
        """
        trained, tensors = frozenset(trained_names), dict(named_tensors(model))
        if unknown := sorted(name for name in trained if whole_name(name) not in tensors):
            raise CofituneError(
                f"The model has no tensor named {_listed(unknown)}; pass names as Region.parameters gives them."
            )
        return cls(trained, _frozen_digests(model, tensors, trained))

    def check(self, model: nn.Module) -> FrozenSummary:
        """Digest the frozen part again and compare; returns the number of tensors and their bytes.

        Raises:
            CofituneError: a frozen tensor has changed, is gone or is new; the message names it.
        """
        tensors = dict(named_tensors(model))
        frozen = {name: tensor for name, tensor in tensors.items() if name not in self.trained}
        now = _frozen_digests(model, tensors, self.trained)
        changed = sorted(name for name in self.digests.keys() | now.keys() if self.digests.get(name) != now.get(name))
        if changed:
            raise CofituneError(
                f"{len(changed)} of {len(self.digests)} frozen tensors changed during training: {_listed(changed)}; "
                "do not use this result, and look for what writes to them."
            )
        trained = sum(part.of(tensors[name]).nbytes for name, part in parts_of(model, self.trained).values())
        return FrozenSummary(len(frozen), sum(tensor.nbytes for tensor in frozen.values()) - trained)


def _frozen_digests(model: nn.Module, tensors: Mapping[str, Tensor], trained: frozenset[str]) -> dict[str, str]:
    parts = parts_of(model, trained)
    rest = rest_digests(tensors, parts)
    whole = {name: tensor for name, tensor in tensors.items() if name not in trained and name not in rest}
    return {**digest_all(whole), **rest}


def parts_of(model: nn.Module, names: Iterable[str]) -> dict[str, tuple[str, Part]]:
    """Name -> (tensor, part), for those of the names that stand for parts in `model`."""
    names = [name for name in names if name.endswith("]")]
    layout = resolve_layout(model) if names else None
    found = {name: layout.part(name) for name in names} if layout is not None else {}
    return {name: place for name, place in found.items() if place is not None}


def rest_digests(tensors: Mapping[str, Tensor], parts: Mapping[str, tuple[str, Part]]) -> dict[str, str]:
    """Digests of the tensors that are trained in part, with zeros in place of the trained parts."""
    digests = {}
    for name in dict.fromkeys(tensor for tensor, _ in parts.values()):
        rest = tensors[name].detach().clone()
        for tensor, part in parts.values():
            if tensor == name:
                part.of(rest).zero_()
        digests[name] = tensor_digest(rest)
    return digests


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
