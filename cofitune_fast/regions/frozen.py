"""Proof that training changed no byte outside the region."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from ..errors import CofituneError
from ..models.fingerprint import digest_all, named_tensors


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
        if unknown := sorted(trained - tensors.keys()):
            raise CofituneError(
                f"The model has no tensor named {_listed(unknown)}; pass names as Region.parameters gives them."
            )
        return cls(trained, digest_all({name: tensor for name, tensor in tensors.items() if name not in trained}))

    def check(self, model: nn.Module) -> FrozenSummary:
        """Digest the frozen part again and compare; returns the number of tensors and their bytes.

        Raises:
            CofituneError: a frozen tensor has changed, is gone or is new; the message names it.
        """
        frozen = {name: tensor for name, tensor in named_tensors(model) if name not in self.trained}
        now = digest_all(frozen)
        changed = sorted(name for name in self.digests.keys() | now.keys() if self.digests.get(name) != now.get(name))
        if changed:
            raise CofituneError(
                f"{len(changed)} of {len(self.digests)} frozen tensors changed during training: {_listed(changed)}; "
                "do not use this result, and look for what writes to them."
            )
        return FrozenSummary(len(frozen), sum(tensor.nbytes for tensor in frozen.values()))


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
