"""MaskedAdamW one parameter at a time, for those who update a parameter as soon as its gradient is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CofituneError
from ..ops import GradNorm
from ..ops._checks import require
from .arguments import NAME
from .batch import Batch

if TYPE_CHECKING:
    from .masked_adamw import MaskedAdamW


class OneByOne:
    """Steps of single parameters of a MaskedAdamW, by a clip factor that the caller has measured.

    Given the same gradients and factor, all parameters one by one have the bits of one `MaskedAdamW.step`. Options of
    their groups, masks, pull and states are the optimizer's; its own `step` may follow at any time.

    Raises:
        CofituneError: the optimizer counts its steps on the device, for all parameters together.
    """

    def __init__(self, optimizer: MaskedAdamW):
        require(not optimizer.capturable,
                f"{NAME}: with capturable=True all parameters step together; leave it out to update them one by one.")
        self.optimizer = optimizer
        self._kept: dict[Tensor, tuple[dict[str, Any], Batch]] = {}

    @torch.no_grad()
    def gradient(self, p: Tensor) -> Tensor:
        """p's gradient, checked and contiguous, as `ops.grad_norm` takes it."""
        return self._batch(p)[1].gradients()[0]

    @torch.no_grad()
    def step(self, p: Tensor, clip: Tensor) -> None:
        """Update p by its gradient, which stays as it is, and count it as a step of p.

        clip: float32 [2] on p's device, as `GradNorm.clip`; with the skip flag p and its states keep their bytes.
        """
        group, batch = self._batch(p)
        batch.step(group, batch.gradients(), clip, False, self.optimizer.backend)
        self.optimizer._batches = [(None, [])] * len(self.optimizer.param_groups)  # their counts may differ now

    @property
    def unfinished(self) -> bool:
        """Whether a norm has been measured and `MaskedAdamW.step` not been called since."""
        return self.optimizer._measured["clip"] is not None

    def finish(self, measured: GradNorm) -> None:
        """Hand the norm of all gradients over to the optimizer; with no gradient left its next `step` does nothing."""
        self.optimizer._measured.update(norm=measured.norm, clip=measured.clip)

    def _batch(self, p: Tensor) -> tuple[dict[str, Any], Batch]:
        group, batch = self._kept.get(p, (None, None))
        if batch is None or self.optimizer.state.get(p) is not batch.states[0]:  # new, or replaced by load_state_dict
            name, group = self._place(p)
            batch = self.optimizer._batch([name], [p], [self.optimizer._state(group, name, p)])
            self._kept[p] = group, batch
        return group, batch

    def _place(self, p: Tensor) -> tuple[str, dict[str, Any]]:
        """Name and group of p."""
        for group in self.optimizer.param_groups:
            for name, other in zip(group["param_names"], group["params"], strict=True):
                if other is p:
                    return name, group
        raise CofituneError(f"{NAME}: a parameter of shape {list(p.shape)} is to be updated, but this optimizer does "
                            "not train it.")
