"""Steps of MaskedAdamW one parameter at a time, for updates as soon as a gradient is complete."""

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
    """Steps of single parameters of a MaskedAdamW, with a clip factor that the caller has measured.

    With the same gradients and factor, stepping all parameters one by one gives the bits of one `MaskedAdamW.step`.
    Options, masks, pull and states are those of the optimizer. Its own `step` may be called at any time.

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
        """Gradient of p, checked and contiguous, for `ops.grad_norm`."""
        return self._batch(p)[1].gradients()[0]

    @torch.no_grad()
    def step(self, p: Tensor, clip: Tensor) -> None:
        """Update p by its gradient, and count a step of p. The gradient is not changed.

        clip: float32 [2] on p's device, see `GradNorm`. With the skip flag set, p and its states keep their bytes.
        """
        group, batch = self._batch(p)
        batch.step(group, batch.gradients(), clip, False, self.optimizer.backend)
        self.optimizer._batches = [(None, [])] * len(self.optimizer.param_groups)  # their counts may differ now

    @property
    def unfinished(self) -> bool:
        """True if a norm was measured, and `MaskedAdamW.step` was not called after it."""
        return self.optimizer._measured["clip"] is not None

    def finish(self, measured: GradNorm) -> None:
        """Give the norm of all gradients to the optimizer. Without gradients its next `step` does nothing."""
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
