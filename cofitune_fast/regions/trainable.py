"""Interface of trainable parts of a model: a region, every parameter, or an adapter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from .cells import Cell
from .layout import Layout

if TYPE_CHECKING:
    from .region import Region


class Trainable(Protocol):
    """Part of a model that can be trained: a `Region`, or adapters on a region's projections."""

    @property
    def is_full(self) -> bool:
        """True if every parameter of the model is trained."""

    @property
    def in_place(self) -> bool:
        """True if the model's own weights are trained, False if adapters beside them are."""

    @property
    def changes(self) -> Region:
        """Region whose weights differ from the base's after training, with an adapter merged."""

    @property
    def cached_below(self) -> Region | None:
        """Region below which the layers' output equals the base's and can come from a cache; None if there is none."""

    def attached(self, model: nn.Module) -> AbstractContextManager[None]:
        """Give `model` the parameters to train inside the block; afterwards it has its earlier modules."""

    def cells(self, layout: Layout) -> list[Cell]:
        """List the cells that are trained or adapted, sorted by layer."""

    def parameters(self, model: nn.Module) -> list[tuple[str, Tensor]]:
        """Return the (name, parameter) pairs to train; call it inside `attached`."""

    def apply(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """Freeze everything else and return `parameters`."""

    def count(self, model: nn.Module) -> int:
        """Count the trained numbers."""

    def endpoint(self, model: nn.Module) -> Callable[[str, Tensor], Tensor]:
        """Return a function (name of a weight, base value) -> trained value, from the model as it is now, inside
        `attached`.
        """
