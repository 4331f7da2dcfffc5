"""Proof that training changed no byte outside the region."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from ..errors import CofituneError
from ..models.fingerprint import digest_all, named_tensors, tensor_digest
from .cells import whole_name
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
        trained = sum(view.nbytes for views in _trained_parts(model, self.trained, tensors).values() for view in views)
        return FrozenSummary(len(frozen), sum(tensor.nbytes for tensor in frozen.values()) - trained)


def _frozen_digests(model: nn.Module, tensors: Mapping[str, Tensor], trained: frozenset[str]) -> dict[str, str]:
    parts = rest_digests(model, tensors, trained)
    whole = {name: tensor for name, tensor in tensors.items() if name not in trained and name not in parts}
    return {**digest_all(whole), **parts}


def rest_digests(model: nn.Module, tensors: Mapping[str, Tensor], trained: Iterable[str]) -> dict[str, str]:
    """Digests of the tensors that are trained in part, with zeros in place of the trained parts."""
    digests = {}
    for name, _ in _trained_parts(model, trained, tensors).items():
        rest = tensors[name].detach().clone()
        for view in _trained_parts(model, trained, {name: rest})[name]:
            view.zero_()
        digests[name] = tensor_digest(rest)
    return digests


def _trained_parts(model: nn.Module, trained: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """Tensor -> views of its trained parts, for the tensors that are trained in part."""
    names = [name for name in trained if name.endswith("]") and whole_name(name) in tensors]
    if not names:
        return {}
    layout = resolve_layout(model)
    views: dict[str, list[Tensor]] = {}
    for name in names:
        if (found := layout.part(name)) is not None:
            views.setdefault(found[0], []).append(found[1].of(tensors[found[0]].detach()))
    return views


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
