"""What can be trained: a region, every parameter, or an adapter; all with one face."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from .roles import Cell, Layout

if TYPE_CHECKING:
    from .region import Region


class Trainable(Protocol):
    """A choice of what is trained. `Region` is one; adapters that are put on a region's projections are another."""

    @property
    def is_full(self) -> bool:
        """True if every parameter of the model is trained."""

    @property
    def changes(self) -> Region:
        """The region whose weights differ from the base's afterwards, an adapter merged."""

    @property
    def cached_below(self) -> Region | None:
        """The region below which the layers' output is the base's and can come from a cache; None if there is none."""

    def attached(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside the block `model` holds the parameters to be trained; afterwards it has the modules it had before."""

    def cells(self, layout: Layout) -> list[Cell]:
        """The cells that are trained or adapted, sorted by layer."""

    def parameters(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """The (name, parameter) pairs to be trained, inside `attached`."""

    def apply(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """Freeze everything else; returns `parameters`."""

    def count(self, model: nn.Module) -> int:
        """How many numbers are trained."""

    def endpoint(self, model: nn.Module) -> Callable[[str, Tensor], Tensor]:
        """f(name of a weight, its base value) is its trained value, from the model as it is now, inside `attached`."""
